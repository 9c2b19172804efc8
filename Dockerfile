# The service alone; compose.yaml has the rest.
FROM rust:1.95-bookworm AS build
WORKDIR /src
# The dependencies are a layer of their own, built from the manifests and nothing of ours: it is built again when they
# change, and not with every change of the program.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/integration benches/bench \
    && echo 'fn main() {}' | tee src/main.rs tests/integration/main.rs > benches/bench/main.rs \
    && touch src/lib.rs \
    && cargo build --profile dist --locked --bin firstcome
COPY src src
COPY lua lua
COPY migrations migrations
# Newer than what was built of the placeholders, whatever times these files came with.
RUN touch src/main.rs src/lib.rs && cargo build --profile dist --locked --bin firstcome

# glibc, certificate authorities (for TLS to payment gateways, Redis and PostgreSQL), and an unprivileged user. No shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/firstcome /usr/local/bin/firstcome
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
# It writes no file: its root may be read-only.
ENV BIND_ADDR=0.0.0.0:8080
EXPOSE 8080
# Drains: see docs/running.md, "A stop".
STOPSIGNAL SIGTERM
# Health checks run `firstcome health` or ask /readyz. There is none here, since `project` and `migrate` serve nothing.
ENTRYPOINT ["firstcome"]
CMD ["serve"]
