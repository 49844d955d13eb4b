# Shared by the scripts in this folder; source it, do not run it. Needs bash and `set -euo pipefail`.

OPS_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO_DIR=$(dirname "$OPS_DIR")
# Outside the clone: a fresh clone must not pay again for what does not depend on it.
CACHE_DIR=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/spark-devnet
MIN_RUST_MINOR=95
MIN_BITCOIND_MAJOR=29
MIN_NODE_MAJOR=18

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { type -P "$1" >/dev/null; }

# --- stage times -----------------------------------------------------------------------------------------

STAGES=()

# stage NAME COMMAND...: runs the command, records its seconds, keeps its exit status.
stage() {
    local name=$1 started=$SECONDS status=0
    shift
    say "$name"
    # Not `"$@" || status=$?` in this shell: that would switch off `set -e` inside functions given to us.
    set +e
    ( set -e; "$@" )
    status=$?
    set -e
    local took=$((SECONDS - started))
    if ((status == 0)); then
        STAGES+=("ok     $took $name")
        say "$name: $took s"
    else
        STAGES+=("FAILED $took $name")
        say "$name: FAILED with status $status after $took s"
    fi
    return "$status"
}

# beside PROGRAM...: starts it beside the stages that follow; `beside_result` is the stage that ends it.
beside() {
    BESIDE_LOG=$(mktemp)
    {
        local status=0
        "$@" >"$BESIDE_LOG" 2>&1 || status=$?
        echo "$status" >"$BESIDE_LOG.status"
    } &
    BESIDE=$!
}

# beside_stop: ends what is still running when a stage before its result failed.
beside_stop() {
    [[ -n ${BESIDE:-} && -d /proc/$BESIDE ]] || return 0
    # shellcheck disable=SC2046 # each child is a word
    kill $(<"/proc/$BESIDE/task/$BESIDE/children") 2>/dev/null || true
    rm -f "$BESIDE_LOG" "$BESIDE_LOG.status"
}

# beside_result: waits for what `beside` started, shows what it printed, ends as it ended.
beside_result() {
    local status=0
    # A stage runs in a subshell, which cannot wait for a child of its parent.
    tail --pid="$BESIDE" -f /dev/null
    cat "$BESIDE_LOG" >&2
    status=$(cat "$BESIDE_LOG.status" 2>/dev/null || echo 1)
    rm -f "$BESIDE_LOG" "$BESIDE_LOG.status"
    return "$status"
}

# stage_table: what ran so far and how long it took.
stage_table() {
    local row result seconds name total=0
    ((${#STAGES[@]})) || return 0
    printf '\n%8s  %-7s %s\n' seconds result stage >&2
    for row in "${STAGES[@]}"; do
        read -r result seconds name <<<"$row"
        total=$((total + seconds))
        printf '%8d  %-7s %s\n' "$seconds" "$result" "$name" >&2
    done
    printf '%8d  %-7s %s\n' "$total" "" total >&2
}

# --- programs --------------------------------------------------------------------------------------------

# rust_is_new_enough: rustc 1.MIN_RUST_MINOR or later is on PATH.
rust_is_new_enough() {
    local version
    have rustc && have cargo || return 1
    version=$(rustc --version)
    [[ $version =~ ^rustc\ ([0-9]+)\.([0-9]+) ]] || return 1
    ((BASH_REMATCH[1] > 1 || (BASH_REMATCH[1] == 1 && BASH_REMATCH[2] >= MIN_RUST_MINOR)))
}

# initdb_path: the newest installed initdb. Debian keeps the server's programs out of PATH.
initdb_path() {
    type -P initdb && return 0
    local found
    found=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
    [[ -x $found ]] && printf '%s\n' "$found"
}

# softhsm_module: the PKCS#11 library of SoftHSM.
softhsm_module() {
    local path
    for path in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so \
        /usr/lib64/softhsm/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so; do
        [[ -r $path ]] && { printf '%s\n' "$path"; return 0; }
    done
    return 1
}

node_is_new_enough() {
    have node || return 1
    [[ $(node --version) =~ ^v([0-9]+)\. ]] && ((BASH_REMATCH[1] >= MIN_NODE_MAJOR))
}

# --- bitcoind --------------------------------------------------------------------------------------------

# bitcoind_version PATH: its first words. Even for those it makes its data directory and writes settings there,
# so it gets one that is not in anyone's home.
bitcoind_version() {
    local scratch
    scratch=$(mktemp -d)
    "$1" -regtest -nosettings -datadir="$scratch" -version 2>/dev/null | sed -n 1p || true
    rm -rf "$scratch"
}

# bitcoind_is_usable PATH: it runs and is Bitcoin Core MIN_BITCOIND_MAJOR or later.
bitcoind_is_usable() {
    local version
    [[ -f $1 && -x $1 ]] || return 1
    version=$(bitcoind_version "$1")
    [[ $version =~ version\ v([0-9]+)\. ]] && ((BASH_REMATCH[1] >= MIN_BITCOIND_MAJOR))
}

# bitcoind_source_checksum: SHA-256 of the crate with the sources, as the lock file pins it.
bitcoind_source_checksum() {
    sed -n '/^name = "libbitcoinkernel-sys"$/,/^checksum/s/^checksum = "\([0-9a-f]\{64\}\)"$/\1/p' \
        "$OPS_DIR/bitcoind/Cargo.lock"
}

# bitcoind_cached_path: where the bitcoind built from exactly these sources and options lies.
# The devnet crate computes the same path (`bitcoind::find`).
bitcoind_cached_path() {
    local checksum options
    checksum=$(bitcoind_source_checksum)
    options=$(sha256sum <"$OPS_DIR/bitcoind/options")
    printf '%s/bitcoind-%s-%s/bitcoind\n' "$CACHE_DIR" "${checksum:0:12}" "${options:0:12}"
}

# find_bitcoind: $BITCOIND_EXE, then PATH, then the cache.
find_bitcoind() {
    local path
    if [[ -n ${BITCOIND_EXE:-} ]]; then
        bitcoind_is_usable "$BITCOIND_EXE" ||
            die "BITCOIND_EXE=$BITCOIND_EXE is not a bitcoind of version $MIN_BITCOIND_MAJOR or later"
        printf '%s\n' "$BITCOIND_EXE"
        return 0
    fi
    if path=$(type -P bitcoind) && bitcoind_is_usable "$path"; then
        printf '%s\n' "$path"
        return 0
    fi
    path=$(bitcoind_cached_path)
    bitcoind_is_usable "$path" && printf '%s\n' "$path"
}

# --- kryoptic --------------------------------------------------------------------------------------------

# kryoptic_cached_path: where the library built from exactly these sources lies.
# The softhsm crate computes the same path (`kryoptic::module_path`).
kryoptic_cached_path() {
    local key
    key=$(cat "$REPO_DIR/softhsm/kryoptic/Cargo.toml" "$REPO_DIR/softhsm/kryoptic/Cargo.lock" | sha256sum)
    printf '%s/kryoptic-%s/libkryoptic_pkcs11.so\n' "$CACHE_DIR" "${key:0:12}"
}

# find_kryoptic: $KRYOPTIC_MODULE, then the cache.
find_kryoptic() {
    local path=${KRYOPTIC_MODULE:-}
    [[ -n $path ]] || path=$(kryoptic_cached_path)
    [[ -r $path ]] && printf '%s\n' "$path"
}

# find_chromium: prints the browser that tests drive.
find_chromium() { type -P chromium || type -P chromium-browser || type -P google-chrome; }

# --- packages of npm -------------------------------------------------------------------------------------

# npm_packages FOLDER: the folder with the node_modules of FOLDER's lock file, installed outside of the clone once per
# lock file, without running scripts of packages.
npm_packages() {
    local from=$1 key folder
    key=$(cat "$from/package.json" "$from/package-lock.json" | sha256sum | cut -c1-16)
    folder=$CACHE_DIR/npm-$(basename "$from")-$key
    mkdir -p "$CACHE_DIR"
    (
        flock 9
        [[ ! -e $folder/complete ]] || exit 0
        say "installing the packages of ops/$(basename "$from")"
        rm -rf "$folder"
        mkdir -p "$folder"
        cp "$from/package.json" "$from/package-lock.json" "$from/.npmrc" "$folder/"
        cd "$folder"
        npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
        touch complete
    ) 9>"$folder.lock"
    printf '%s\n' "$folder"
}
