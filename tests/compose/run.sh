#!/usr/bin/env bash
# Start docker-compose.yml on a Docker engine of its own: three workers run a batch, one is killed, one
# is drained, the pages and Prometheus are looked at, and all is shut down.
#
#   tests/compose/run.sh
#
# It needs root, Debian, 4 GB of disk, and the mirror and the package index that this machine uses. The
# engine has folders, a socket and a containerd of its own, and changes no rule of the firewall: so the
# images are built with this machine's network, and no port is published. Exit code 0: all is as it
# should be.
#
# Kept between runs in $SANDFLEET_COMPOSE_ROOT (default /var/tmp/sandfleet-compose): the engine's
# programs, the base images. Nothing of it runs afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly CACHE=${SANDFLEET_COMPOSE_ROOT:-/var/tmp/sandfleet-compose}
readonly TOOLS=$CACHE/tools/root PROJECT=sandfleet-test
readonly BATCH_JOBS=30

say() { printf 'compose: %s\n' "$*"; }

die() { printf 'compose: %s\n' "$*" >&2; exit 1; }

# Prints the mirror that apt uses here.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 == "main" && !/security/ && !found { found = 1; print $1 }'
}

# Takes engine and containerd out of this system's packages, and compose out of trixie's, without
# installing any: an installation would start services.
make_tools() {
    [[ -e $CACHE/tools/done ]] && return
    say "taking the engine and compose out of their packages"
    rm -rf "$CACHE/tools"
    mkdir -p "$TOOLS" "$CACHE/tools"/{debs,sources,state/lists/partial,cache/archives/partial}
    chmod 755 "$CACHE" "$CACHE/tools" "$CACHE/tools/debs"
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    printf 'deb [signed-by=%s] %s trixie main\n' "$keyring" "$(mirror)" >"$CACHE/tools/sources/trixie.list"
    local private=(-q -q -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$CACHE/tools/sources"
        -o "Dir::Etc::Preferences=/dev/null" -o "Dir::Etc::PreferencesParts=/dev/null" -o "Dir::State=$CACHE/tools/state"
        -o "Dir::State::status=/dev/null" -o "Dir::Cache=$CACHE/tools/cache" -o "APT::Sandbox::User=root" -o "Acquire::Languages=none")
    apt-get "${private[@]}" update
    (cd "$CACHE/tools/debs" && apt-get "${private[@]}" download docker-compose && apt-get -q -q -o APT::Sandbox::User=root download docker.io containerd runc tini)
    local deb
    for deb in "$CACHE"/tools/debs/*.deb; do dpkg-deb -x "$deb" "$TOOLS"; done
    mkdir -p "$CACHE/tools/config/cli-plugins"
    ln -sf "$(find "$TOOLS" -path '*cli-plugins/docker-compose' | head -n 1)" "$CACHE/tools/config/cli-plugins/docker-compose"
    touch "$CACHE/tools/done"
}

# Makes the base images, which a registry would have elsewhere: Debian, and Debian with Redis.
make_roots() {
    local name
    for name in debian redis; do
        [[ -e $CACHE/$name.tar ]] && continue
        say "making the base image $name from the mirror that apt uses here"
        local more=ca-certificates
        [[ $name == debian ]] || more=redis-server,redis-tools
        mmdebstrap --quiet --variant=minbase --include="$more" --format=tar trixie "$CACHE/$name.tar.new" "$(mirror)" 2>"$CACHE/mmdebstrap.log" ||
            { tail -n 20 "$CACHE/mmdebstrap.log" >&2; return 1; }
        mv "$CACHE/$name.tar.new" "$CACHE/$name.tar"
    done
}

start_engine() {
    work=$(mktemp -d -p /run sandfleet-compose-XXXXXX)
    export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$CACHE/tools/config DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
    export PATH=$TOOLS/usr/sbin:$TOOLS/usr/bin:$TOOLS/sbin:$TOOLS/bin:$PATH
    dockerd --data-root "$CACHE/engine" --exec-root "$work/exec" --pidfile "$work/docker.pid" --host "$DOCKER_HOST" \
        --iptables=false --ip6tables=false --ip-masq=false --userland-proxy=false --bip=172.31.255.1/24 >"$work/engine.log" 2>&1 &
    engine=$!
    local tries
    for tries in $(seq 60); do
        docker version >/dev/null 2>&1 && return
        kill -0 "$engine" 2>/dev/null || break
        sleep 1
    done
    tail -n 30 "$work/engine.log" >&2
    die "the engine does not start"
}

stop_all() {
    local code=$?
    trap - EXIT
    ((code == 0)) || compose logs --tail 40 2>/dev/null | tail -n 200 >&2 || true
    compose --profile tools --profile prometheus down --volumes --remove-orphans --timeout 20 >/dev/null 2>&1 || true
    if kill "$engine" 2>/dev/null; then wait "$engine" || true; fi
    awk -v work="$work" '$2 ~ "^" work { print $2 }' /proc/mounts | sort -r | xargs -r umount 2>/dev/null || true
    rm -rf --one-file-system "$work" "$env_file"
    exit "$code"
}

compose() { docker compose --project-name "$PROJECT" --env-file "$env_file" -f docker-compose.yml -f tests/compose/override.yml "$@"; }

cli() { compose run --rm -T cli "$@" </dev/null; }

# Asks a server of the fleet (name:port), from the container of the pages: no port is published.
ask() {
    compose exec -T web python3 -c "
import base64, sys, urllib.request
request = urllib.request.Request('http://' + sys.argv[1])
if len(sys.argv) > 2: request.add_header('Authorization', 'Basic ' + base64.b64encode(sys.argv[2].encode()).decode())
try: print(urllib.request.urlopen(request, timeout=10).read().decode())
except urllib.error.HTTPError as error: print('status', error.code)
" "$@"
}

ask_pages() { local path=$1; shift; ask "127.0.0.1:5556$path" "$@"; }

wait_for() {
    local seconds=$1 tries; shift
    for ((tries = 0; tries < seconds; tries++)); do
        "$@" && return
        sleep 1
    done
    die "not within $seconds s: $*"
}

worker_ids() { compose ps --quiet --status running worker; }

has_workers() { (($(worker_ids | wc -l) == $1)); }

run_batch() {
    seq "$BATCH_JOBS" | sed 's/.*/{"image": "busybox", "command": ["sh", "-c", "sleep 1; echo &"], "timeout": 60}/' |
        compose run --rm -T cli submit - --batch drill --wait --out - >"$work/outcomes" 2>"$work/submit.log" &
    local submit=$! first
    wait_for 60 has_started
    first=$(worker_ids | head -n 1)
    say "killing one worker, then draining another"
    docker kill "$first" >/dev/null
    docker stop --time 60 "$(worker_ids | tail -n 1)" >/dev/null
    wait "$submit" || { tail -n 20 "$work/submit.log" >&2; die "the batch did not end"; }
    local ok
    ok=$(grep -c '"code": *"OK"' "$work/outcomes")
    ((ok == BATCH_JOBS)) || die "$ok of $BATCH_JOBS jobs ended OK"
    say "$ok of $BATCH_JOBS jobs ended OK, each once"
}

has_started() { compose logs --no-color worker 2>/dev/null | grep -q 'action=job_started'; }

check_pages() {
    [[ $(ask_pages /fleet/) == *"status 401"* || $(ask_pages /fleet/) == *login* ]] || die "the pages need no password"
    local page
    for page in /fleet/ /fleet/hosts /fleet/batches; do
        ask_pages "$page" "ops:$web_password" >"$work/page"
        ! grep -q '^status ' "$work/page" || die "$page: $(cat "$work/page")"
    done
    grep -q drill "$work/page" || die "the batch is not on its page"
    [[ $(ask flower:5555/fleet/) == *"status 401"* ]] || die "the pages in Flower need no password"
    [[ $(ask flower:5555/fleet/batches "$flower_auth") == *drill* ]] || die "the batch is not on Flower's page"
    wait_for 30 has_history_in_flower
    say "the pages show the batch"
}

# The jobs of the batch are in the history that Flower's pages read.
has_history_in_flower() {
    [[ $(ask "flower:5555/fleet/api/v1/count?q=batch:drill" "$flower_auth") == *"\"count\":$BATCH_JOBS"* ]]
}

has_series() { [[ $(ask "prometheus:9090/api/v1/query?query=$1") == *'"value":'* ]]; }

check_prometheus() {
    wait_for 60 has_series 'sandfleet_workers%7Bstate=%22up%22%7D==1' # of three: one was killed, one drained
    local rules
    rules=$(ask prometheus:9090/api/v1/rules)
    [[ $rules == *'"name":"SandfleetNoWorkers"'* ]] || die "Prometheus has no alert rules: $rules"
    [[ $rules != *'"health":"err"'* ]] || die "an alert rule fails: $rules"
    say "Prometheus reads the metrics and has the alert rules"
}

main() {
    [[ $EUID -eq 0 ]] || die "it needs root"
    mkdir -p "$CACHE"
    make_tools
    make_roots
    env_file=$(mktemp) engine=0 work=/nowhere web_password=$(openssl rand -hex 12) flower_auth=ops:$(openssl rand -hex 12)
    printf 'SANDFLEET_%s\n' "REDIS_PASSWORD=$(openssl rand -hex 24)" "FLOWER_AUTH=$flower_auth" "WEB_AUTH=ops:$web_password" \
        "WEB_TOKEN_VALUE=$(openssl rand -hex 24)" "BASE_IMAGE=sandfleet-base" "REDIS_IMAGE=sandfleet-redis" \
        "PROMETHEUS_IMAGE=sandfleet-prometheus" "CONCURRENCY=3" "RUN_DIR=$CACHE/run" >"$env_file"
    trap stop_all EXIT
    trap 'exit 130' INT TERM
    start_engine
    docker import "$CACHE/debian.tar" sandfleet-imported >/dev/null
    mkdir -p "$work/base"
    cp -L /etc/ssl/certs/ca-certificates.crt "$work/base/"
    if [[ -e /etc/pip.conf ]]; then cp -L /etc/pip.conf "$work/base/pip.conf"; else touch "$work/base/pip.conf"; fi
    printf 'FROM sandfleet-imported\nCOPY ca-certificates.crt /etc/ssl/certs/\nCOPY pip.conf /etc/\n' >"$work/base/Dockerfile"
    docker build -q --network host -t sandfleet-base "$work/base" >/dev/null
    docker import --change 'USER redis' "$CACHE/redis.tar" sandfleet-redis-imported >/dev/null
    printf 'FROM sandfleet-redis-imported\nUSER root\nRUN install -d -o redis -g redis /data\n' >"$work/base/Dockerfile"
    docker build -q --network host -t sandfleet-redis "$work/base" >/dev/null
    cp -L /usr/local/lib/sandfleet/prometheus/prometheus "$work/base/"
    printf 'FROM sandfleet-base\nCOPY prometheus /usr/bin/\nRUN install -d -o nobody /prometheus\nUSER nobody\n' >"$work/base/Dockerfile"
    docker build -q --network host -t sandfleet-prometheus "$work/base" >/dev/null
    say "building the images (minutes)"
    compose --profile tools build --quiet
    say "adding an image, starting three workers"
    compose run --rm -T images add busybox </dev/null >/dev/null
    compose --profile prometheus up --detach --wait --wait-timeout 180 --scale worker=3
    has_workers 3 || die "there are $(worker_ids | wc -l) workers"
    [[ $(cli run --image busybox -- echo hello) == hello ]] || die "no job runs"
    run_batch
    check_pages
    check_prometheus
    say "stopping"
    compose --profile prometheus down --timeout 90
    ! docker ps --quiet | grep -q . || die "a container is left"
    say "all is as it should be"
}

main "$@"
