# make run: sets up what is missing and boots to the shell.
# make test: sets up and passes the tests, but for the long ones.
# make test-all: passes all tests, and tests a machine without an IOMMU, and one whose drivers are segmented.
# make miri: runs the tests of drivers' logic, and of gates, descriptors and the policy for ring 0, in Miri, where a nightly
# toolchain has it: six minutes.
.PHONY: run test test-all setup build lint miri

# The tests that need crates which take long to compile.
ALL_FEATURES = --features ringfence-tests/perfetto
# The drivers whose logic has tests on the host.
HOST_TESTED = $(addprefix -p rf-,am53c974 fat ide ne2k-pci rtl8139 template virtio-net)
TEST_DRIVERS = cargo test -p ringfence-sdk --features ringfence-sdk/fake $(HOST_TESTED)

run: setup
	cargo run

# The kernel's last crate uses one CPU for more than a minute. The tests are compiled beside it, and give way to what it waits for.
build: setup
	cargo build --bin ringfence
	@target=$$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'); \
	"$$target/debug/ringfence" build & built=$$!; \
	nice cargo test --no-run $(FEATURES) && nice $(TEST_DRIVERS) --lib --no-run; tests=$$?; wait $$built && exit $$tests

test: build
	@echo "test: $$($${RINGFENCE_QEMU:-qemu-system-x86_64} --version | head -n 1)"
	@echo "test: $$(bochs --help cpu 2>&1 | grep -o -m 1 'Bochs x86 Emulator .*'), $$(rustc --version)"
	RUST_TEST_THREADS=$$(($$(nproc) + 1)) cargo test $(FEATURES) $(ALL)
	@echo "test: the logic of drivers, with kernels and devices that are made up"
	$(TEST_DRIVERS) --lib
	cargo test -p ringfence-sdk --features ringfence-sdk/fake --doc

test-all: FEATURES = $(ALL_FEATURES)
test-all: ALL = -- --include-ignored
test-all: test
	@echo "test: what a machine without an IOMMU, with other buses and interrupts, could do otherwise"
	RINGFENCE_MACHINE=pc RUST_TEST_THREADS=$$(($$(nproc) + 1)) cargo test --test qemu $(FEATURES) -- --include-ignored \
		block:: boot:: devices:: hotplug:: network:: repeat:: reset:: restart:: scsi::
	@echo "test: drivers in segmented domains, if the compiler has their target"
	! [ -d "$$(boot/setup.sh --print-sysroot)/lib/rustlib/i586-unknown-linux-gnu/lib" ] || \
		RINGFENCE_KIND=segmented RUST_TEST_THREADS=$$(($$(nproc) + 1)) cargo test --test qemu $(FEATURES)

setup:
	@boot/setup.sh

miri:
	MIRIFLAGS=-Zmiri-permissive-provenance cargo +nightly miri test -p ringfence-sdk --features ringfence-sdk/fake \
		$(HOST_TESTED) --lib
	PROPTEST_CASES=8 MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p ringfence-core --lib -- \
		descriptor:: port_bitmap:: extent:: evidence::policy

lint: setup
	cargo fmt --all --check
	cargo clippy --all-targets $(ALL_FEATURES) -- -D warnings
	cargo clippy $(HOST_TESTED) --lib --profile test -- -D warnings
	cargo run -- lint
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; \
	else echo "lint: cargo-deny is not installed ('cargo install cargo-deny'): licences and sources are not checked"; fi
