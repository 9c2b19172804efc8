//! BASE of `make test-versions`: the newest release, or what is named.

use std::{fs, path::Path, process::Output};

use firstcome::dev::ScratchDir;
use tokio::process::Command;

use crate::support::repository::root;

/// Runs a program in a directory, with an environment that has nothing of ours.
async fn run_in(dir: &Path, program: &str, arguments: &[&str], base: &str) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env_clear().env("BASE", base);
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.output().await.unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// A repository with nothing but the script.
struct Repository(ScratchDir);

impl Repository {
    async fn create() -> Repository {
        let dir = ScratchDir::new().unwrap();
        fs::create_dir(dir.path().join("scripts")).unwrap();
        fs::copy(root().join("scripts/test-versions"), dir.path().join("scripts/test-versions")).unwrap();
        let repository = Repository(dir);
        repository.git(&["init", "--quiet"]).await;
        repository.commit().await;
        repository
    }

    async fn git(&self, arguments: &[&str]) -> String {
        let author = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
        let output = run_in(self.0.path(), "git", &[&author, arguments].concat(), "").await;
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A new commit.
    async fn commit(&self) -> String {
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "Change"]).await;
        self.git(&["rev-parse", "HEAD"]).await
    }

    /// The commit that the script takes for BASE, or its sentence.
    async fn base(&self, base: &str) -> Result<String, String> {
        let output = run_in(self.0.path(), "scripts/test-versions", &["--base"], base).await;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

#[tokio::test]
async fn base_is_newest_release_unless_named() {
    let repository = Repository::create().await;
    let sentence = repository.base("").await.unwrap_err();
    assert!(sentence.contains("no release yet") && sentence.contains("make test-versions BASE="), "{sentence}");
    let mut commits = Vec::new();
    for tag in ["v0.9.0", "v0.10.0", "v0.2.0", "work"] {
        commits.push(repository.commit().await);
        repository.git(&["tag", tag]).await;
    }
    assert_eq!(repository.base("").await, Ok(commits[1].clone()));
    assert_eq!(repository.base("HEAD~1").await, Ok(commits[2].clone()));
    let sentence = repository.base("v7.0.0").await.unwrap_err();
    assert!(sentence.contains("BASE=v7.0.0 names no commit"), "{sentence}");
}
