//! Links the loader at 1 MiB, headers first.
fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/loader.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
}
