//! A library that is preloaded into processes under test: it shifts their clock, and records what they flush to the disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// A variable of an environment.
pub type Variable = (String, String);

/// The file that stalls the flushes of a process.
const STALL: &str = "stall";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The compiled `preload.c`.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/support/preload.c");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (made, library) = (dir.join(format!("preload-{}.so", std::process::id())), dir.join("preload.so"));
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&made).arg(source);
        let compiled = compiler.output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        // Another run may use the same directory.
        fs::rename(made, &library).unwrap();
        library
    })
}

/// The environment of a process whose clock is off by this many milliseconds.
pub fn shifted_clock(offset_ms: i64) -> [Variable; 2] {
    [("LD_PRELOAD".into(), text(library())), ("CLOCK_OFFSET_MS".into(), offset_ms.to_string())]
}

/// The disk of a process that runs in this environment.
pub struct Disk {
    /// Has a record of each file that was flushed.
    synced: PathBuf,
}

impl Disk {
    /// The disk with these records, which need not exist yet.
    pub fn new(synced: PathBuf) -> Disk {
        fs::create_dir_all(&synced).unwrap();
        Disk { synced }
    }

    pub fn environment(&self) -> [Variable; 2] {
        [("LD_PRELOAD".into(), text(library())), ("SYNCED_DIR".into(), text(&self.synced))]
    }

    /// From now on no flush ends: what the process writes is not on the disk.
    pub fn stall(&self) {
        fs::write(self.synced.join(STALL), "").unwrap();
    }

    /// The killed process's machine has lost its power: cuts each file of the directory to `kept`, given the length that was flushed
    /// and the whole length, if that is longer. Flushes end again. Returns the lost bytes.
    pub fn lose_power(&self, files: &Path, mut kept: impl FnMut(u64, u64) -> u64) -> u64 {
        let _stalled = fs::remove_file(self.synced.join(STALL));
        let mut flushed: BTreeMap<std::ffi::OsString, u64> = BTreeMap::new();
        for record in fs::read_dir(&self.synced).unwrap().flatten() {
            let length = fs::read(record.path()).unwrap();
            flushed.insert(record.file_name(), u64::from_le_bytes(length.try_into().unwrap()));
        }
        assert!(!flushed.is_empty(), "the process runs without the preloaded library: is it linked statically?");
        let mut lost = 0;
        for file in fs::read_dir(files).unwrap().flatten() {
            let length = file.metadata().unwrap().len();
            let Some(flushed) = flushed.get(&file.file_name()).filter(|flushed| **flushed < length) else { continue };
            let kept = kept(*flushed, length);
            fs::File::options().write(true).open(file.path()).unwrap().set_len(kept).unwrap();
            lost += length - kept;
        }
        lost
    }
}
