//! Writers that remember what was acknowledged.
/// Placeholder until the client library lands.
#[derive(Debug)]
pub struct Workload;
