//! Replays the inputs of `fuzz/corpus`: the first inputs, and the inputs that the fuzzer has found.

#[test]
fn every_kept_input_is_survived() {
    for (name, target) in ringfence_fuzz::TARGETS {
        let directory = ringfence::project().join("fuzz/corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "there is nothing in {}", directory.display());
    }
}
