# The commands of a developer. ARGS goes to the program: make run ARGS='--help', make test ARGS='races -- --nocapture'

.DEFAULT_GOAL := help
.PHONY: help install run test test-fetched test-large test-web test-webhooks test-clients test-deploy test-versions fuzz chaos chaos-long drill load-test pgo release bench instructions bench-compare lint deny

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install: ## install Redis, PostgreSQL, a C compiler, curl, PgBouncer and valgrind, where they are missing
	@scripts/install-servers

run: install ## run the service on 127.0.0.1:8080, with a private Redis and PostgreSQL under .firstcome/
	cargo run --release --locked -- dev $(ARGS)

test: install ## run every test, on private servers
	cargo test --locked $(ARGS)

CACHE = $(abspath $(or $(FIRSTCOME_CACHE_DIR),.firstcome/cache))

test-fetched: ## run every test on the newest servers (Valkey 9, PostgreSQL 18), fetched into the cache
	@scripts/install-servers --fetch
	REDIS_SERVER_BIN="$(CACHE)/valkey/bin/valkey-server" POSTGRES_BIN_DIR="$(CACHE)/postgres/bin" \
		cargo test --locked $(ARGS)

test-large: install ## test the rebuild and the audit of a million users and 200,000 orders
	LARGE_USERS=1000000 LARGE_ORDERS=200000 cargo test --locked --test integration -- large:: --nocapture

test-web: ## test the dashboard in headless Chromium; screenshots in target/web/ (ARGS='-k rush' for some)
	@scripts/test-web $(ARGS)

test-webhooks: ## verify webhooks with the official library of Standard Webhooks for Python
	@scripts/test-webhooks

test-clients: ## validate the OpenAPI documents, generate clients, and follow the pages of docs/clients (ARGS=python for one)
	@scripts/test-clients $(ARGS)

test-deploy: ## lint and render the Helm chart, test the alerts, load the compose files
	@scripts/test-deploy $(ARGS)

test-versions: install ## run the last release, or BASE=a commit, and this version on the same stores, under load
	@BASE="$(BASE)" scripts/test-versions $(ARGS)

fuzz: install ## fuzz the running service by its OpenAPI document, and every decoder (see scripts/fuzz)
	@scripts/fuzz

chaos: install ## test the promises under crashes, cuts and full disks at random moments (CHAOS_SEED=1 replays)
	CHAOS_SEED="$${CHAOS_SEED:-$$(date +%s)}" CHAOS_FAULTS="$${CHAOS_FAULTS:-64}" \
		cargo test --locked --test integration -- chaos:: --nocapture --test-threads=1 $(ARGS)

chaos-long: install ## run seeds of it to 100,000 operations through 500 faults, resumably; report in target/chaos-long/
	@scripts/chaos-long

drill: install ## let each machine die while customers buy, and print what they saw (ARGS=redis-master for some drills)
	cargo test --locked --test integration -- $(or $(addprefix drill::,$(subst -,_,$(ARGS))),drill::) \
		--include-ignored --nocapture --test-threads=1

load-test: ## run k6 against a private service, or against BASE_URL (SCENARIO=coupon-rush, flash-sale, returns, mixed-day, spike, soak or all)
	@scripts/load-test $(ARGS)

bench: install ## measure the tables of docs/benchmarks.md; writes target/bench/report.md
	cargo bench --locked --profile dist --features baseline --bench bench -- $(ARGS)

pgo: install ## build the program for production, optimised by a profile of the load tests; print its path
	@scripts/build-pgo $(ARGS)

release: ## build the release of HEAD, reproducibly, in target/releases/ (ARGS=v0.2.0 of a tag, ARGS=--check compares two builds)
	@scripts/build-release $(ARGS)

bench-compare: install ## measure two commits in alternation, and print ratios (BASE=main ARGS='endpoints --rounds 2')
	@scripts/bench-compare $(BASE) $(ARGS)

instructions: install ## count the instructions of the hot paths, and compare them with their bounds (ARGS=--update writes them)
	cargo test --locked --test instructions -- $(ARGS)

lint: ## check formatting, and run clippy with warnings as errors
	cargo fmt --check
	cargo clippy --all-targets --all-features --locked -- -D warnings

deny: ## check the dependencies against deny.toml: licences, sources, known vulnerabilities
	@scripts/deny
