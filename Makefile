# make run: sets up what is missing and boots to the shell.  make test: sets up and passes every test.
.PHONY: run test setup lint

run: setup
	cargo run

test: setup
	cargo test

setup:
	@boot/setup.sh

lint: setup
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	cargo run -- lint
