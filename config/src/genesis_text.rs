//! A genesis as a file that explains itself.

use crate::genesis::{LIMIT_KEYS, role_name};
use conclave_consensus::membership::Genesis;
use std::fmt::Write as _;

/// The text of a genesis file. Parsing it gives the same genesis again.
#[must_use]
pub fn render(genesis: &Genesis) -> String {
    let mut out = String::new();
    write_all(&mut out, genesis).expect("a String takes any text");
    out
}

fn write_all(out: &mut String, genesis: &Genesis) -> std::fmt::Result {
    writeln!(
        out,
        "# What the members of this cluster agreed on. Everybody needs the same facts: a digest of them is\n\
         # the cluster id, and replicas and clients of another id are refused. Comments, order and spelling\n\
         # do not count.\n\
         # Cluster id: {}\n\n\
         [cluster]\n\
         name = {}\n\
         # How the replicas agree.\n\
         protocol = {}\n",
        genesis.cluster(),
        quoted(&genesis.name),
        quoted(&genesis.protocol),
    )?;
    writeln!(out, "[limits]")?;
    for limit in &LIMIT_KEYS {
        writeln!(out, "# {}\n{} = {}", limit.comment, limit.key, (limit.get)(&genesis.limits))?;
    }
    writeln!(out, "\n# Who runs replicas and clients.")?;
    for name in &genesis.organizations {
        writeln!(out, "[[organizations]]\nname = {}\n", quoted(name))?;
    }
    writeln!(
        out,
        "# The replicas: ids from 0 on, the organization that runs each, its public key, where the other\n\
         # replicas reach it, and where clients do."
    )?;
    for member in &genesis.membership.members {
        writeln!(
            out,
            "[[replicas]]\nid = {}\norganization = {}\nkey = \"{}\"\naddress = {}\nclient_address = {}\n",
            member.id,
            quoted(&member.organization),
            member.key,
            quoted(&member.address),
            quoted(&member.client_address),
        )?;
    }
    writeln!(
        out,
        "# The clients. An admin also changes the cluster, a writer writes, a reader only reads; the keys\n\
         # that a client writes must start with its prefix."
    )?;
    for client in &genesis.clients {
        let prefix = String::from_utf8_lossy(&client.prefix);
        writeln!(
            out,
            "[[clients]]\nkey = \"{}\"\norganization = {}\nrole = \"{}\"\nprefix = {}\n",
            client.key,
            quoted(&client.organization),
            role_name(client.role),
            quoted(&prefix),
        )?;
    }
    Ok(())
}

/// A TOML string.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
