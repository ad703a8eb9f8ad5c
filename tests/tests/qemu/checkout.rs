//! Copies of the checkout, and copies of a driver.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Copies all files that a build needs.
fn copied() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("a copy");
    std::fs::create_dir(&copy).unwrap();
    let parts = ["Cargo.toml", "Cargo.lock", ".cargo", "boot", "drivers", "fuzz", "kernel", "tests"];
    let from = parts.map(|part| ringfence::project().join(part));
    let status = Command::new("cp").arg("-r").args(from).arg(&copy).status().unwrap();
    assert!(status.success());
    (folder, copy)
}

fn replace(file: &Path, old: &str, new: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(old));
    std::fs::write(file, text.replace(old, new)).unwrap();
}

/// A runner that was copied together with its checkout builds and writes in the copy.
#[test]
fn a_copied_checkout_is_what_is_built() {
    ringfence_tests::system();
    let (_folder, copy) = copied();
    std::fs::write(copy.join("boot/loader/Cargo.toml"), "this is the copy").unwrap();
    let runner = copy.join("target/debug/ringfence");
    std::fs::create_dir_all(runner.parent().unwrap()).unwrap();
    std::fs::copy(ringfence_tests::runner(), &runner).unwrap();
    let run = |command: &mut Command| {
        let output = command.arg("build").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{text}");
        let place = copy.canonicalize().unwrap().join("boot/loader");
        assert!(text.contains(place.to_str().unwrap()), "{text}");
    };
    let clean = |program: &Path| {
        let mut command = Command::new(program);
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        command
    };
    // The runner finds the copy by its own location, wherever it is started. It also finds the copy
    // as 'cargo run' starts it, if the folder was only moved and the runner is elsewhere.
    run(clean(&runner).current_dir("/"));
    let own = ringfence_tests::runner();
    run(clean(own.as_ref()).env("CARGO_PKG_NAME", "ringfence").env("CARGO_MANIFEST_DIR", copy.join("boot/runner")));
}

/// A copy of a driver under another name is built with the others.
#[test]
fn a_copied_driver_is_a_member() {
    let (_folder, copy) = copied();
    let driver = copy.join("drivers/mine");
    let status = Command::new("cp").arg("-r").arg(copy.join("drivers/template")).arg(&driver).status().unwrap();
    assert!(status.success());
    replace(&driver.join("Cargo.toml"), "rf-template", "rf-mine");
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(&copy);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = metadata["packages"].as_array().unwrap().iter().map(|package| package["name"].as_str().unwrap());
    assert!(names.into_iter().any(|name| name == "rf-mine"));
}
