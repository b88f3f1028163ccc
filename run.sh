#!/usr/bin/env bash
# The guide's face of gyrfalcon: sets up .venv beside this file once, then runs one mode.
set -u

here=$(readlink -f -- "${BASH_SOURCE[0]}") && here=${here%/*} || exit 2 # run.sh may be called by a link
venv=$here/.venv
devices=/dev
stamp=$venv/.complete # what the finished set-up was made from; written last, so an interrupted one has none
begun=$venv/.begun # tells an interrupted set-up from an environment that somebody else made

modes=(cut generate score serve speed precision mmlu plan report verify demo doctor test)
mode='' # from -m
declare -A flag=() # the other flags by their letter
words=() # of the prompt
rest=() # what follows --
command=() # what gyrfalcon is called with

synopsis='Usage: bash run.sh -m MODE [flags] [prompt words] [-- anything more for gyrfalcon]'

usage() {
    printf '%s\n\n' "$synopsis"
    cat <<'TEXT'
Modes:
  cut       -h HF -n CUT [-w 4]       cut the Hugging Face folder HF for 4 ranks into the new folder CUT
  generate  -n MODEL [-w N] [prompt]  continue the prompt; MODEL is a cut, a Hugging Face folder or a hub id;
                                      the prompt - takes one prompt from each line of standard input
  score     -n MODEL [-w N] IN OUT    log-probabilities of the prompts in the file or folder IN; writes the folder OUT
  serve     -n MODEL [-w N]           answer OpenAI's API at http://127.0.0.1:8000
  speed     -n MODEL [-f CSV] [-w N]  time the model over 36 pairs of lengths; goes on with what CSV has already
  precision -n MODEL [-w N]           compare the model's logits with a reference's; exit 1 when they are too far off
  mmlu      -n MODEL -d MMLU [-w N]   evaluate the model on MMLU; writes test_result/
  plan      -n MODEL [-w N]           memory and speed on hardware named by -- --hardware, and how many cards
  report    RESULT.json ...           result files as tables and plots: report/report.html and report.md
  verify    -n CUT                    check every file of a cut against its manifest
  demo                                the whole chain on nestling, the model that ships with it; ends in a report
  doctor                              what this machine has, what is wrong with it, and the cure
  test                                all checks of the source; what follows -- goes to pytest

Flags:
  -h HF   the checkpoint: a Hugging Face folder or a hub id (for this text: --help)
  -n N    the cut to write, or the model to run
  -w N    how many ranks (processes) share the model
  -d DIR  the folder of the exam, with dev/, val/ and test/
  -f CSV  the speed table to write (default 1_batch_performance_falcon40b.csv)

Examples:
  bash run.sh -m cut -h falcon-40b -n falcon-40b-4 -w 4
  bash run.sh -m generate -n falcon-40b-4 "Once upon a time" -- --max-new-tokens 64
TEXT
}

# fail WANTED GOT DO: one line in the form of gyrfalcon's own errors.
fail() {
    printf 'run.sh: error: wanted %s, got %s; %s\n' "$@" >&2
    exit 2
}

# wrong_usage WANTED GOT DO: what there is, then what is wrong as the last of three lines.
wrong_usage() {
    printf '%s\nModes: %s; bash run.sh --help explains them\n' "$synopsis" "${modes[*]}" >&2
    fail "$@"
}

say() {
    printf 'run.sh: %s\n' "$1" >&2
}

# ---- from the guide's flags to a gyrfalcon command ----

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help) usage && exit 0 ;;
            --) rest=("${@:2}") && return ;;
            -[mhndfw])
                [ $# -ge 2 ] || wrong_usage "a value after $1" none "write $1 VALUE"
                flag[${1#-}]=$2
                shift 2
                ;;
            -*' '*) words+=("$1") && shift ;; # a text, not a flag
            -?*) wrong_usage 'one of the flags -m -h -n -d -f -w' "$1" "put gyrfalcon's own options after --" ;;
            *) words+=("$1") && shift ;;
        esac
    done
}

# nearest WORD: the mode that WORD is with at most two letters changed, left out or put in.
nearest() {
    local name found='' least=3
    for name in "${modes[@]}"; do
        distance "$1" "$name"
        [ "$REPLY" -ge "$least" ] || { found=$name && least=$REPLY; }
    done
    [ -n "$found" ] && printf '%s\n' "$found"
}

# distance A B: REPLY is how many letters have to be changed, left out or put in (Wagner and Fischer 1974).
distance() {
    local row=() i j corner up
    for ((j = 0; j <= ${#2}; j++)); do row[j]=$j; done
    for ((i = 1; i <= ${#1}; i++)); do
        corner=$((i - 1)) row[0]=$i
        for ((j = 1; j <= ${#2}; j++)); do
            up=${row[j]}
            [ "${1:i-1:1}" = "${2:j-1:1}" ] || corner=$((corner + 1))
            row[j]=$((corner < up + 1 ? corner : up + 1))
            row[j]=$((row[j] < row[j - 1] + 1 ? row[j] : row[j - 1] + 1))
            corner=$up
        done
    done
    REPLY=${row[${#2}]}
}

# no_mode WORD: ends with what to write after -m, where nothing or a word that is no mode stands.
no_mode() {
    local wanted='one of the modes above after -m' name
    name=$(nearest "$1") && wrong_usage "$wanted" "${mode:-none}" "did you mean -m $name?"
    wrong_usage "$wanted" "${mode:-none}" 'write -m MODE'
}

# takes LETTERS: refuses flags that the mode would ignore.
takes() {
    local letter
    for letter in "${!flag[@]}"; do
        [[ m$1 == *$letter* ]] || wrong_usage "flags that -m $mode takes" "-$letter" 'leave it out'
    done
    [[ $mode == @(generate|score|report) ]] || [ ${#words[@]} -eq 0 ] || wrong_usage "no words after -m $mode" "${words[0]}" 'leave them out'
}

needs() {
    [ -n "${flag[$1]:-}" ] || wrong_usage "-$1 $2 with -m $mode" none 'add it'
}

build_command() {
    mode=${flag[m]:-}
    case $mode in
        cut)
            takes hnw && needs h HF && needs n CUT
            command=(cut "${flag[h]}" "${flag[n]}" -w "${flag[w]:-4}")
            ;;
        generate)
            takes nw && needs n MODEL
            command=(generate "${flag[n]}")
            case ${words[*]-} in
                '') ;;
                -) command+=(-) ;; # one prompt a line, from standard input
                *) command+=(--prompt "${words[*]}") ;;
            esac
            [ -z "${flag[w]:-}" ] || command+=(-w "${flag[w]}")
            ;;
        score)
            takes nw && needs n MODEL
            [ ${#words[@]} -eq 2 ] || wrong_usage 'IN and OUT with -m score' "${#words[@]} words" 'name a file or folder of prompts, and a folder for the results'
            command=(score "${words[@]}" -m "${flag[n]}")
            [ -z "${flag[w]:-}" ] || command+=(-w "${flag[w]}")
            ;;
        speed)
            takes nfw && needs n MODEL
            command=(speed "${flag[n]}" -f "${flag[f]:-1_batch_performance_falcon40b.csv}")
            [ -z "${flag[w]:-}" ] || command+=(-w "${flag[w]}")
            ;;
        serve | precision | plan)
            takes nw && needs n MODEL
            command=("$mode" "${flag[n]}")
            [ -z "${flag[w]:-}" ] || command+=(-w "${flag[w]}")
            ;;
        mmlu)
            takes ndw && needs n MODEL && needs d MMLU
            command=(mmlu "${flag[n]}" -d "${flag[d]}")
            [ -z "${flag[w]:-}" ] || command+=(-w "${flag[w]}")
            ;;
        report)
            takes ''
            command=(report ${words[@]+"${words[@]}"})
            ;;
        verify)
            takes n && needs n CUT
            command=(verify "${flag[n]}")
            ;;
        demo | doctor | test)
            takes ''
            command=("$mode")
            ;;
        '') no_mode "${words[0]-}" ;;
        *) no_mode "$mode" ;;
    esac
    command+=(${rest[@]+"${rest[@]}"})
}

# ---- the environment: one that is active and has the package, or .venv ----

# active_bin TOOL...: the bin folder of the active environment, when it has all the tools and runs this source.
active_bin() {
    local bin on_path tried=$venv/bin
    on_path=$(type -P gyrfalcon)
    for bin in "${VIRTUAL_ENV:-}/bin" "${CONDA_PREFIX:-}/bin" "${on_path%/*}"; do
        [[ :$tried: != *":$bin:"* ]] || continue
        tried+=:$bin
        is_usable "$bin" "$@" || continue
        printf '%s\n' "$bin"
        return
    done
    return 1
}

# is_usable BIN TOOL...: whether an environment has all the tools and runs this source.
is_usable() {
    local tool
    for tool in python "${@:2}"; do
        [ -x "$1/$tool" ] || return 1
    done
    runs_this_source "$1"
}

# Which gyrfalcon a Python imports: exit code 0 where it is the one of the folder; prints the environment's own, when
# that is another. An editable installation of another clone comes before PYTHONPATH, in every process.
which_source='
import importlib.util, os, sys
def origin():
    spec = importlib.util.find_spec("gyrfalcon")
    return spec.origin if spec and spec.origin else ""
source = sys.argv[1]
ours = os.path.join(source, "gyrfalcon", "__init__.py")
def is_ours(path): return os.path.exists(path) and os.path.samefile(path, ours)
found = origin()
sys.path = [path for path in sys.path if path != source]
own = origin()
print("" if is_ours(own) else os.path.dirname(own))
sys.exit(not is_ours(found))
'

# runs_this_source BIN: whether an environment imports the source beside this file; tells what else it has.
runs_this_source() {
    local own
    if own=$("$1/python" -P -c "$which_source" "$here/src" 2>/dev/null); then
        [ -z "$own" ] || say "running $here/src in the environment ${1%/bin}, not its own $own"
    elif [ -n "$own" ]; then
        say "running $here/src in $venv; the environment ${1%/bin} runs $own"
        return 1
    else
        return 1
    fi
}

# describe EXTRAS: what a set-up depends on; the place comes first, for a virtual environment cannot be moved.
describe() {
    printf '%s\n%s\n' "$here" "$1"
    cat -- "$here/pyproject.toml" "$here/constraints.txt"
    printf 'native kernels %s\n' "${GYRFALCON_NATIVE:-wanted}"
    cat -- "$here"/src/gyrfalcon/native/{,isa/}*.{txt,cpp,h,inl} 2>/dev/null | cksum
}

is_complete() {
    [ -x "$venv/bin/python" ] && [ "$(head -n 1 -- "$stamp" 2>/dev/null)" = "$here" ]
}

# is_ours: whether .venv is run.sh's to clear: it made it, or nothing but pip is in there.
is_ours() {
    local package
    [ -e "$stamp" ] || [ -e "$begun" ] || for package in "$venv"/lib/python*/site-packages/*.dist-info; do
        [[ ! -e $package || ${package##*/} == @(pip|setuptools|wheel)-* ]] || return 1
    done
}

is_ready() {
    local found
    is_complete || return 1
    found=$(cat -- "$stamp")
    [ "$found" = "$(describe '[test]')" ] || [ "$found" = "$(describe "$1")" ]
}

find_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "the venv module of $python" none 'install it (Debian and Ubuntu: apt install python3-venv)'
        type -P "$python"
        return
    done
    fail 'Python 3.11 or newer as python3' "$(python3 --version 2>/dev/null || echo none)" 'install it, or activate an environment that has it'
}

has_torch() {
    "$venv/bin/python" -c 'import importlib.metadata, sys
sys.exit(importlib.metadata.version("torch").partition("+")[0] != sys.argv[1])' "$1" 2>/dev/null
}

# install_torch PIP...: torch as pinned, where there is no accelerator its build for processors alone.
install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    has_torch "$version" && return
    if ! compgen -G "$devices/nvidia*" >/dev/null && ! compgen -G "$devices/davinci*" >/dev/null &&
        ! [ -e "$devices/kfd" ] && ! [ -e "$devices/dxg" ]; then # dxg: a card under Windows' Linux
        say "no accelerator here: fetching torch's build for processors, about 200 MB"
        # Alone, because that index need not have the pinned versions of what torch depends on.
        "$@" --no-deps --retries 0 --timeout 5 --index-url https://download.pytorch.org/whl/cpu "torch==$version" 2>/dev/null && return
        say 'download.pytorch.org cannot be reached or does not have it: taking the usual index'
    fi
    say "fetching torch $version; with CUDA's libraries, as PyPI has it for Linux on x86-64, about 3 GB"
    "$@" torch
}

wants_kernels() {
    [ "${GYRFALCON_NATIVE:-}" != 0 ]
}

compiles_kernels() {
    wants_kernels && type -P "${CXX:-c++}" >/dev/null
}

install_package() {
    local pip=("$venv/bin/python" -m pip install)
    [ -t 2 ] || pip+=(--quiet)
    trap 'exit 130' INT # for this subshell, which would go on to the next step
    cd -- "$here" || return
    # Relative, because pip takes a space in this variable for the end of a file name.
    export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
    install_torch "${pip[@]}" || return
    [ "$1" != '[test]' ] || say 'fetching what the checks need, Triton and transformers among it, about 300 MB'
    ! compiles_kernels || say 'installing the package and compiling its native kernels: this takes minutes'
    "${pip[@]}" -e ".$1"
}

# set_up EXTRAS: makes .venv, or brings one that is complete but old up to date.
set_up() {
    local python fresh=--clear
    if is_complete; then fresh=--upgrade; fi
    is_ours || fail "no $venv, or one that run.sh made" 'an environment of your own' 'install gyrfalcon from this folder there (docs/install.md), or move it away'
    python=$(find_python) || exit 2
    trap 'exit 130' INT # pip turns the signal into an ordinary error
    say "setting up $venv (once)"
    ! wants_kernels || compiles_kernels ||
        say "no C++ compiler: plain torch will do the work of the native kernels, slower; to have them, install one (Debian and Ubuntu: apt install g++), remove $venv and run again"
    rm -f -- "$stamp"
    { "$python" -m venv "$fresh" "$venv" && : >"$begun"; } >&2 || fail "a virtual environment in $venv" 'the error above' 'fix that and run again'
    (install_package "$1") >&2 || fail "the package installed in $venv" 'the error above' 'fix that and run again'
    describe "$1" >"$stamp.new" && mv -- "$stamp.new" "$stamp"
    trap - INT
    say "set-up done in $SECONDS s"
}

# One set-up at a time, where flock exists: the second to come waits, then finds all done.
set_up_alone() {
    exec 9<"$here/pyproject.toml"
    if type -P flock >/dev/null && ! flock -n 9; then
        say 'waiting for another set-up to finish'
        flock 9
    fi
    is_ready "$1" || set_up "$1"
    exec 9<&-
}

# find_bin EXTRAS TOOL...: sets `bin` to a folder that holds the tools.
find_bin() {
    bin=$(active_bin "${@:2}") && return
    bin=$venv/bin
    is_ours || ! is_usable "$bin" "${@:2}" 2>/dev/null || return 0
    is_ready "$1" || set_up_alone "$1"
}

# ---- the two things it can run ----

# Runs every check; the exit code is the first failure's.
run_checks() {
    local status=0
    find_bin '[test]' gyrfalcon ruff mypy pytest
    cd -- "$here" || exit 2
    check "$bin/ruff" check .
    check "$bin/ruff" format --check .
    check "$bin/mypy" -n 2
    check "$bin/pytest" -n 2 --dist loadfile --no-loadscope-reorder "$@" # a file's tests share the models they make
    return "$status"
}

check() {
    local code
    printf '+ %s\n' "${*/#"$bin/"/}"
    "$@"
    code=$?
    [ "$status" -ne 0 ] || status=$code
}

main() {
    [ "$*" != help ] || set -- --help
    read_arguments "$@"
    build_command
    # The source beside this file, whichever package an active environment has.
    export PYTHONPATH=$here/src${PYTHONPATH:+:$PYTHONPATH}
    if [ "$mode" = test ]; then
        run_checks "${command[@]:1}"
        exit
    fi
    find_bin '[report,hub,serve]' gyrfalcon
    export GYRFALCON_RUN_SH=1 # its advice on options tells of the --
    exec "$bin/gyrfalcon" "${command[@]}"
}

main "$@"
