# Copyright The Certbound Authors
# SPDX-License-Identifier: Apache-2.0

# Continuous integration runs these targets and nothing else, so a laptop can run them too. Once the modules are
# downloaded, all but lint (which fetches its pinned tools) work without a network.

GO ?= go

# The tags drop database drivers of the CA library that nothing here uses. Forgetting them only makes a bigger binary.
TAGS := nobadger,nobbolt,nomysql,nopgx

# The version is written below by the linker, so Go need not ask git (which may refuse a checkout of another user).
export GOFLAGS := $(GOFLAGS) -buildvcs=false -trimpath -tags=$(TAGS)
export CGO_ENABLED = 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

TESTFLAGS ?=
BENCHFLAGS ?=
SCALEFLAGS ?=
FAULTSFLAGS ?=
FUZZTIME ?= 5s
MUTATEFLAGS ?=

.PHONY: all build test race lint fuzz mutate demo interop bench overload denied scale faults clean
all: build

# One static binary in this folder.
build:
	$(GO) build -ldflags '$(LDFLAGS)' -o certbound ./cmd/certbound

# Everything, and it needs only Go: the packages, stories on the real binary, the commands of the README.
test:
	$(GO) test $(TESTFLAGS) ./...

# The same under the race detector, which needs cgo and so a C compiler. A program under it sleeps for a second when it ends,
# lest it ends while another thread reports a race: a hundredth does, and the tests run it a thousand times.
race: export CGO_ENABLED = 1
race: export GORACE = atexit_sleep_ms=10
race:
	@command -v $${CC:-gcc} >/dev/null 2>&1 || { \
	  echo "make race: the race detector needs a C compiler; install gcc (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
	$(GO) test -race -timeout 20m $(TESTFLAGS) ./...

# gofmt, go vet, staticcheck, go.mod and go.sum as they should be, shellcheck, govulncheck.
lint:
	GO='$(GO)' scripts/lint

# Every fuzz target for FUZZTIME.
fuzz:
	GO='$(GO)' scripts/fuzz $(FUZZTIME)

# Whether the tests notice when a check of the security packages goes: every one, which takes a quarter of an hour, unless
# MUTATEFLAGS says which (go run ./scripts/mutate -h).
mutate:
	$(GO) run ./scripts/mutate $(MUTATEFLAGS)

# The story of the README against real processes; fails unless every step does what it should.
demo: build
	$(GO) run ./scripts/demo -certbound ./certbound

# Clients that know nothing of us get tokens and are refused: curl, golang.org/x/oauth2, npm's openid-client. Needs
# openssl, node and npm, and for npm ci a network.
interop: build
	GO='$(GO)' scripts/interop/run ./certbound

# Server CPU per token beside a bare reference and what we promise; BENCHFLAGS=-short for a quick look, -h for the rest.
bench: build
	$(GO) build -o bin/bench ./scripts/bench
	bin/bench -certbound ./certbound $(BENCHFLAGS)

# What known clients get while others flood the service; fails when they keep less than half. BENCHFLAGS=-h says more.
overload: build
	$(GO) build -o bin/bench ./scripts/bench
	bin/bench overload -certbound ./certbound $(BENCHFLAGS)

# How long a revoked token is good at 50 resource servers that follow what is denied, and what it costs them to ask; fails when
# it is a second or more in one of 100 cases. BENCHFLAGS=-h says more.
denied: build
	$(GO) build -o bin/bench ./scripts/bench
	bin/bench denied -certbound ./certbound -strict $(BENCHFLAGS)

# What the service costs with a million clients beside a hundred: about 20 minutes and 5 GB of disk, unless
# SCALEFLAGS=-short. SCALEFLAGS='-keep FOLDER' keeps the installations for the next time, -h says more.
scale: build
	$(GO) build -o bin/bench ./scripts/bench
	$(GO) build -o bin/scale ./cmd/internal/scale
	bin/bench scale -certbound ./certbound -builder bin/scale $(SCALEFLAGS)

# Kills the program under load, fills its disk, copies and damages its journal, and holds it to what it told its callers;
# then the same of three replicas whose PostgreSQL is killed, cut off and fails over. Linux with user namespaces and
# PostgreSQL's programs; a quarter of an hour and more, unless FAULTSFLAGS=-short. FAULTSFLAGS=-replicas is the second part alone.
faults: build
	$(GO) build -o bin/faults ./scripts/faults
	bin/faults -certbound ./certbound $(FAULTSFLAGS)

clean:
	rm -rf certbound bin
