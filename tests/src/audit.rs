//! After a test: is every acknowledged write in the ledger of every replica?
