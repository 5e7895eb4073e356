//! RocksDB's settings, and why each differs from RocksDB's own choice.

use super::Kind;
use conclave_config::node_config::NodeConfig;
use conclave_consensus::storage::Table;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType,
    DBRecoveryMode, LogLevel, LruCacheOptions, Options, ReadOptions, WriteBufferManager,
    WriteOptions,
};
use std::path::Path;

/// One memtable of the journal: larger than half of its write-ahead log, whose turns flush it. Bytes.
const JOURNAL_BUFFER_BYTES: usize = 48 << 20;
/// One memtable of a busy ledger table. Bytes.
const LEDGER_BUFFER_BYTES: usize = 16 << 20;
/// Values from this size on live in blob files, so that compactions do not copy them. Bytes.
const BLOB_BYTES_MIN: u64 = 1 << 10;
/// One table file: small, so that one compaction does not hold up the next for long. Bytes.
const TABLE_FILE_BYTES: u64 = 16 << 20;
/// Flushed files that one compaction merges into the level below. It rewrites that level, and so the fewer of them the
/// better; filters make the files between them cheap to read. In the journal a compaction mostly drops what was truncated.
const LEVEL_ZERO_FILES: i32 = 16;
/// Of those, as many as make RocksDB slow writes down, and as many as make it stop them: well above, since the blocks that
/// agreement hands over do not wait.
const LEVEL_ZERO_SLOW: (i32, i32) = (5 * LEVEL_ZERO_FILES / 2, 4 * LEVEL_ZERO_FILES);
/// Open files per instance; the default keeps every table file open for ever.
const OPEN_FILES_MAX: i32 = 256;

/// What the journal and the ledger of one process share: the block cache and the memory of
/// unflushed writes. Cloning it shares it.
#[derive(Clone)]
pub struct SharedResources {
    cache: Cache,
    write_buffers: WriteBufferManager,
}

impl SharedResources {
    /// A block cache for both instances, with their indexes and filters, and most memory that the
    /// unflushed writes of both take together. Units: MiB, as in `node.toml`.
    #[must_use]
    pub fn new(block_cache_mb: u64, write_buffer_mb: u64) -> Self {
        let bytes = |mb: u64| usize::try_from(mb << 20).unwrap_or(usize::MAX);
        let mut cache = LruCacheOptions::default();
        cache.set_capacity(bytes(block_cache_mb));
        // By default a cache of this size has 64 shards, too small for what is kept in them.
        cache.set_num_shard_bits(2);
        let cache = Cache::new_lru_cache_opts(&cache);
        // Without stalls: a replica that is over budget flushes earlier, and never stops voting.
        let write_buffers =
            WriteBufferManager::new_write_buffer_manager(bytes(write_buffer_mb), false);
        Self { cache, write_buffers }
    }
}

impl Default for SharedResources {
    fn default() -> Self {
        Self::new(NodeConfig::BLOCK_CACHE_MB, NodeConfig::WRITE_BUFFER_MB)
    }
}

impl std::fmt::Debug for SharedResources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedResources").finish_non_exhaustive()
    }
}

/// How an instance is opened, as far as RocksDB's settings differ by it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Create,
    Serve,
    Inspect,
    Salvage,
}

/// Settings of a whole instance that lies in this directory, or will.
pub(super) fn database(
    kind: Kind,
    how: Use,
    resources: &SharedResources,
    directory: &Path,
) -> Options {
    let mut options = Options::default();
    // What the journal flushes is read at a start and by nobody else, and copying it through the page cache was a
    // twentieth of a loaded node's time. The ledger's nodes are read again soon: from the page cache, where they fit.
    let past_the_cache = kind == Kind::Journal && matches!(how, Use::Create | Use::Serve);
    options.set_use_direct_io_for_flush_and_compaction(
        past_the_cache && passes_the_page_cache(directory),
    );
    options.create_if_missing(how == Use::Create);
    options.create_missing_column_families(how == Use::Create);
    options.set_error_if_exists(how == Use::Create);
    options.set_paranoid_checks(true);
    options.set_write_buffer_manager(&resources.write_buffers);
    options.set_wal_recovery_mode(recovery(kind, how));
    options.set_track_and_verify_wals_in_manifest(true);
    // A recycled log cannot tell a torn last record from a garbled one.
    options.set_recycle_log_file_num(0);
    // One flush and one compaction at a time: two cores carry the whole replica.
    options.set_max_background_jobs(2);
    options.set_max_file_opening_threads(1);
    options.set_max_open_files(OPEN_FILES_MAX);
    // Flushes and compactions reach the disk in small steps, between which the journal's syncs go.
    options.set_bytes_per_sync(512 << 10);
    options.set_wal_bytes_per_sync(512 << 10);
    options.set_max_total_wal_size(8 * LEDGER_BUFFER_BYTES as u64);
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_manifest_file_size(4 << 20);
    // RocksDB's own log: small, and only what an operator would act on.
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    // No periodic statistics: they only wake an idle process.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

/// Whether files there can be written past the page cache; a file system in memory, say, has nothing else.
#[cfg(target_os = "linux")]
fn passes_the_page_cache(directory: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt as _;
    let probe = directory.join("direct-io-probe");
    let mut how = std::fs::OpenOptions::new();
    how.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
    let opened = how.open(&probe).is_ok();
    // It is empty, and where it could not be made there is none.
    let _ = std::fs::remove_file(&probe);
    opened
}

#[cfg(not(target_os = "linux"))]
fn passes_the_page_cache(_: &Path) -> bool {
    false
}

/// What a damaged write-ahead log means.
///
/// The journal writes none; what it finds must be whole. The ledger's is not synced, so after a power loss its log may end in a hole; it is cut there, and
/// brought forward from the journal. Whoever inspects a ledger wants to hear of it instead.
fn recovery(kind: Kind, how: Use) -> DBRecoveryMode {
    match (kind, how) {
        (Kind::Ledger, Use::Create | Use::Serve | Use::Salvage) => DBRecoveryMode::PointInTime,
        (Kind::Journal, _) | (Kind::Ledger, Use::Inspect) => {
            DBRecoveryMode::TolerateCorruptedTailRecords
        }
    }
}

/// Every column family of an instance: one per table, and `default` for the instance's own facts.
pub(super) fn column_families(
    kind: Kind,
    resources: &SharedResources,
) -> Vec<ColumnFamilyDescriptor> {
    let facts = ColumnFamilyDescriptor::new(super::FACTS, column_family(None, resources));
    let tables = kind.tables().iter().map(|table| {
        ColumnFamilyDescriptor::new(table.name(), column_family(Some(*table), resources))
    });
    std::iter::once(facts).chain(tables).collect()
}

fn column_family(table: Option<Table>, resources: &SharedResources) -> Options {
    let mut options = Options::default();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&resources.cache);
    // Indexes and filters count against the cache, or they would grow with the ledger. They are cut
    // into blocks: whole ones are as large as a shard of the cache and would be read for each key.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_optimize_filters_for_memory(true);
    options.set_block_based_table_factory(&blocks);
    options.set_compression_per_level(&compression(table));
    if table != Some(Table::Journal) {
        options.set_level_zero_file_num_compaction_trigger(LEVEL_ZERO_FILES);
        options.set_level_zero_slowdown_writes_trigger(LEVEL_ZERO_SLOW.0);
        options.set_level_zero_stop_writes_trigger(LEVEL_ZERO_SLOW.1);
    }
    options.set_target_file_size_base(TABLE_FILE_BYTES);
    options.set_write_buffer_size(match table {
        Some(Table::Journal) => JOURNAL_BUFFER_BYTES,
        // All of one checkpoint's rows fit: they are deleted before they are flushed.
        Some(Table::Dirty) => 2 * LEDGER_BUFFER_BYTES,
        Some(Table::Bodies | Table::Store | Table::Blocks | Table::Trie | Table::Staging) => {
            LEDGER_BUFFER_BYTES
        }
        Some(
            Table::Meta
            | Table::Commits
            | Table::Checkpoints
            | Table::Sessions
            | Table::Registry
            | Table::Evidence,
        )
        | None => LEDGER_BUFFER_BYTES / 4,
    });
    if table == Some(Table::Bodies) {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_file_size(64 << 20);
        options.set_blob_compression_type(DBCompressionType::Lz4);
    }
    options
}

/// How the levels of a table are compressed, from the first on. Files of the first two are merged away soon. Nodes of the
/// trie are mostly hashes, and rows marked as changed are gone after one checkpoint.
fn compression(table: Option<Table>) -> [DBCompressionType; 7] {
    use DBCompressionType::{Lz4, None as Plain};
    match table {
        Some(Table::Trie | Table::Dirty | Table::Journal) => [Plain; 7],
        _ => [Plain, Plain, Lz4, Lz4, Lz4, Lz4, Lz4],
    }
}

/// How a batch is written.
pub(super) fn write(kind: Kind, synced: bool) -> WriteOptions {
    let mut options = WriteOptions::default();
    match kind {
        // The journal has a write-ahead log of its own.
        Kind::Journal => options.disable_wal(true),
        Kind::Ledger => options.set_sync(synced),
    }
    options
}

/// How a range is read; `to` is exclusive.
pub(super) fn range(to: Option<&[u8]>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    if let Some(to) = to {
        options.set_iterate_upper_bound(to);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_for_direct_io_leaves_nothing_behind_and_is_false_where_nothing_can_be_written() {
        let directory = tempfile::tempdir().expect("a directory");
        passes_the_page_cache(directory.path());
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
        assert!(!passes_the_page_cache(&directory.path().join("absent")));
    }
}
