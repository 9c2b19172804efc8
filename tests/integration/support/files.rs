//! Files of the servers under test.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
};

/// Copies the data directory of a server, with modes and owners and without sockets. Replaces `to`.
pub fn copy_dir(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    copy(from, to);
}

fn copy(from: &Path, to: &Path) {
    let metadata = fs::symlink_metadata(from).unwrap();
    if metadata.is_dir() {
        fs::create_dir_all(to).unwrap();
        fs::set_permissions(to, metadata.permissions()).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else if metadata.is_file() {
        fs::copy(from, to).unwrap();
    } else {
        return;
    }
    chown(to, Some(metadata.uid()), Some(metadata.gid())).unwrap();
}

/// The append-only file that Redis writes to, by its data directory.
pub fn append_only_log(data: &Path) -> PathBuf {
    let files = fs::read_dir(data.join("appendonlydir")).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.to_str().unwrap().ends_with(".incr.aof")).max().unwrap()
}
