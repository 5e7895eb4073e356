//! How a process ends: the one table of exit codes of both binaries.

/// What the shell sees. Scripts rely on the numbers, which follow etcdctl's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// Something went wrong that has no code of its own, or the answer is "no": a failed comparison, a receipt that
    /// proves nothing, a damaged ledger.
    Error = 1,
    /// Too few replicas answered in time.
    Unreachable = 2,
    /// A file, key or value that cannot be right, whatever the cluster says.
    InvalidInput = 3,
    /// The cluster understood and said no.
    Refused = 4,
    /// Interrupted, or asked about something that is not healthy.
    Interrupted = 5,
    /// A file, a disk or a port that could not be used.
    Io = 6,
    /// The command line itself makes no sense.
    Usage = 128,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::ExitCode;

    #[test]
    fn the_numbers_are_the_ones_that_scripts_rely_on() {
        let table = [
            (ExitCode::Ok, 0),
            (ExitCode::Error, 1),
            (ExitCode::Unreachable, 2),
            (ExitCode::InvalidInput, 3),
            (ExitCode::Refused, 4),
            (ExitCode::Interrupted, 5),
            (ExitCode::Io, 6),
            (ExitCode::Usage, 128),
        ];
        for (code, number) in table {
            assert_eq!(code as u8, number);
        }
    }
}
