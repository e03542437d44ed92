# Sourced by the other scripts: makes the environment they run in. Bash 3.2, which macOS ships, is enough.
#
# After `prepare_environment [extras]`: $python is the virtual environment's interpreter, the project is
# installed in it, and on Linux numerics go through OpenBLAS if this machine has or can get it.

unset CDPATH # with it, cd may go elsewhere and print where
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
CUDA_13_DRIVER=580 # the first one for CUDA 13, for which pyproject.toml takes MLX's wheel

# A program that was interrupted ends with an error of its own, which is not the reason to tell.
trap 'exit 130' INT

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

is_recent_python() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${MLXC_PYTHON:-} python3.13 python3.12 python3.11 python3.10 python3 python3.14; do
        if command -v "$name" >/dev/null && is_recent_python "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# The extra with MLX's backend for this machine. Both hold the same files, so a .venv is made for one of
# them and keeps it.
choose_accelerator() {
    local driver
    if [ "$(uname -s)" != Linux ]; then
        return # Metal comes with MLX itself
    fi
    # A driver that hangs must not hold up the start. With several devices there are several lines.
    driver=$(timeout 20 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) ||
        driver=
    if [ "${driver%%.*}" -ge "$CUDA_13_DRIVER" ] 2>/dev/null; then
        printf 'cuda\n'
        return
    fi
    if [ -n "$driver" ]; then
        say "note: MLX uses NVIDIA devices from driver $CUDA_13_DRIVER on, here is ${driver%%.*}: using the CPU"
    fi
    printf 'cpu\n'
}

# What .venv must have been made for. Its console scripts carry its path, so it can't be moved.
venv_description() {
    "$python" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null || return
    printf '%s\n' "$venv"
}

# The stamp is written last, so what was interrupted has none and is made anew.
make_venv() {
    local base output stamp=$venv/.complete
    if [ -x "$python" ] && is_recent_python "$python" && [ -e "$stamp" ] &&
        [ "$(cat "$stamp")" = "$(venv_description)" ]; then
        return
    fi
    rm -rf "$venv" # first: where it is activated, its own python would be found
    base=$(find_python) || die "Python 3.10 or later with the venv module is needed" \
        "(Debian: apt-get install python3-venv; macOS: brew install python@3.12)"
    say "making .venv with $base"
    output=$("$base" -m venv "$venv" 2>&1) ||
        die "$base could not make a virtual environment in $venv: $output"
    choose_accelerator >"$venv/.accelerator"
    write_stamp "$stamp" "$(venv_description)"
}

# write_stamp FILE TEXT: whole or not at all
write_stamp() { printf '%s\n' "$2" >"$1.partial" && mv "$1.partial" "$1"; }

# install_project EXTRAS: "" or extras of pyproject.toml, joined by commas
#
# The stamp names the pyproject.toml that is installed and every choice of extras installed from it.
# It is gone while pip works: an interrupted pip may have replaced half of what an older stamp stands for.
install_project() {
    local extras=${1:-} stamp=$venv/.installed project choices=
    project="pyproject.toml $(cksum <"$root/pyproject.toml")"
    if [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$project" ]; then
        choices=$(sed 1d "$stamp")
        if printf '%s\n' "$choices" | grep -qxF "extras: $extras"; then
            return
        fi
    fi
    say "installing into .venv (once; a few minutes on a slow line)"
    rm -f "$stamp"
    "$python" -m pip install --disable-pip-version-check --retries 5 --timeout 60 \
        --progress-bar on --editable "$root${extras:+[$extras]}" >&2 ||
        die "pip could not install the project; its message is above"
    write_stamp "$stamp" "$project${choices:+
$choices}
extras: $extras"
}

find_openblas() {
    local path
    for path in $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null |
        sed -n 's/.*libopenblas\.so\.0 .*=> //p') \
        /usr/lib/*/libopenblas.so.0 /usr/lib64/libopenblas.so.0 /usr/local/lib/libopenblas.so.0; do
        if [ -e "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
}

# apt_install ARGUMENTS...: where this user may; fails quietly
apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    # An unreachable mirror must not hold up the start for long.
    timeout 180 sh -c '
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -qq "$@" || { apt-get update -qq && apt-get install -y -qq "$@"; }
    ' sh "$@" </dev/null >/dev/null 2>&1
}

install_openblas() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    say "installing OpenBLAS (libopenblas0-pthread), with which MLX computes faster on a CPU"
    apt_install libopenblas0-pthread
}

# MLX's CPU wheel for Linux carries the reference BLAS, which is many times slower than OpenBLAS.
use_openblas() {
    local library
    if [ "$(cat "$venv/.accelerator")" != cpu ]; then
        return 0
    fi
    library=$(find_openblas)
    if [ -z "$library" ] && install_openblas; then
        library=$(find_openblas)
    fi
    if [ -z "$library" ]; then
        say "note: without OpenBLAS a CPU is slow; install libopenblas0-pthread (or your system's openblas)"
        return 0
    fi
    export LD_PRELOAD="$library${LD_PRELOAD:+:$LD_PRELOAD}"
    # Ranks share this machine's cores, so each one's matrix products stay on one thread.
    export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
}

prepare_environment() {
    local extras
    make_venv
    extras=$(cat "$venv/.accelerator")
    install_project "$extras${1:+${extras:+,}$1}"
    use_openblas
}
