#!/bin/sh
# Fetches a model's directory from the Hugging Face hub into models/NAME. Needs curl, and sha256sum
# and sha1sum of coreutils.
#
#   sh test/fetch_model.sh NAME OWNER/REPOSITORY      for instance: gpt2 openai-community/gpt2
#
# A file is downloaded to FILE.part. If the command is repeated, the download continues where it
# stopped. The file is renamed to FILE when its checksum is right. For a file in large-file storage
# the hub reports size and SHA-256 (x-linked-size, x-linked-etag), for any other file git's hash
# (etag): SHA-1 of "blob SIZE\0" and the bytes. An existing file is only checked.
#
# HF_ENDPOINT: another address of the hub, such as a mirror. HF_TOKEN: a token for a private
# repository. REVISION: a branch or commit.
set -eu
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { echo "usage: sh test/fetch_model.sh NAME OWNER/REPOSITORY" >&2; exit 2; }
name=$1 repository=$2
dir=models/$name
hub=${HF_ENDPOINT:-https://huggingface.co}
from=${hub%/}/$repository/resolve/${REVISION:-main}

give_up() {   # MESSAGE
    cat >&2 <<END
error: $1
The files so far are in $dir: repeat the command to continue. Or download by hand, from
${hub%/}/$repository/tree/${REVISION:-main}
into $dir: config.json, vocab.json, merges.txt and model.safetensors (pytorch_model.bin if there is
no model.safetensors). Behind a proxy set https_proxy, for a mirror HF_ENDPOINT.
END
    exit 1
}

command -v curl >/dev/null || give_up "curl not found: apt-get install curl"
mkdir -p "$dir"
# The token goes to curl's stdin: other users can see a command line.
token() {
    [ -z "${HF_TOKEN:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$HF_TOKEN"
}

# header NAME: its value in the reply to HEAD, without quotes
header() {
    tr -d '\r' <"$dir/.head" | awk -v name="$1:" '
        tolower($1) == name { value = $2 }
        END { gsub(/^W\/|"/, "", value); print value }'
}

# ask FILE: sets $size and $sum. Returns 1 if the hub has no such file. For a file in large-file
# storage both are in the reply that redirects to another host. Redirections within the hub (a
# renamed repository, a cache) come before it and do not have them.
ask() {
    url=$from/$1 size= sum=
    for hop in 1 2 3 4 5; do
        code=$(token | curl -sS -K - -I -H 'Accept-Encoding: identity' --retry 3 \
            --connect-timeout 20 --max-time 120 -o "$dir/.head" -w '%{http_code}' "$url" \
            2>"$dir/.error") || give_up "no answer from $hub: $(tail -n 1 "$dir/.error")"
        size=$(header x-linked-size) sum=$(header x-linked-etag) location=$(header location)
        case $code in
        200) size=${size:-$(header content-length)} sum=${sum:-$(header etag)} ;;
        404) return 1 ;;
        401 | 403) give_up "$url: the hub answers $code: it is not public, or not there" ;;
        30?) ;;
        *) give_up "$url: the hub answers $code" ;;
        esac
        case ${sum:+known}$location in /*) url=${hub%/}$location ;; *) break ;; esac
    done
    case $sum in *[!0-9a-f]*) sum=0 ;; esac
    [ ${#sum} -eq 64 ] || [ ${#sum} -eq 40 ] ||
        give_up "$url: the hub sent no checksum, neither as x-linked-etag nor as etag"
}

# is_whole FILE: its checksum is $sum
is_whole() {
    if [ ${#sum} -eq 64 ]; then
        is=$(sha256sum <"$1")
    else
        is=$({ printf 'blob %d\0' "$(wc -c <"$1")"; cat "$1"; } | sha1sum)
    fi
    is=${is%% *}
    [ "$is" = "$sum" ]
}

# fetch FILE: downloads FILE unless it exists with the right checksum. Returns 1 if there is none.
fetch() {
    ask "$1" || return 1
    if [ -f "$dir/$1" ]; then
        if is_whole "$dir/$1"; then echo "✓ $dir/$1 is there"; return 0; fi
        give_up "$dir/$1 exists and differs from the hub's file (checksum $is, expected $sum);
move it away, or keep it and do not use this command"
    fi
    part=$dir/$1.part whole=
    if [ ${#sum} -ne 64 ] || [ -z "$size" ]; then
        rm -f "$part"   # small files start again
    fi
    if [ -f "$part" ] && [ "$(wc -c <"$part")" -ge "$size" ]; then
        if is_whole "$part"; then whole=yes; else rm -f "$part"; fi
    fi
    if [ -z "$whole" ]; then
        echo "→ $dir/$1${size:+, $size bytes}"
        token | curl -fL -K - -# -H 'Accept-Encoding: identity' --retry 5 --connect-timeout 20 \
            --speed-limit 1 --speed-time 60 -C - -o "$part" "$from/$1" ||
            give_up "$from/$1: the transfer ended early"
        is_whole "$part" || {
            rm -f "$part"
            give_up "$from/$1: its checksum is $is, expected $sum; the file was removed"
        }
    fi
    mv "$part" "$dir/$1" || give_up "cannot rename $part"
}

need() { fetch "$1" || give_up "$repository has no $1"; }

trap 'rm -f "$dir/.head" "$dir/.error"' EXIT
need config.json
need vocab.json
need merges.txt
for file in tokenizer_config.json generation_config.json; do fetch "$file" || true; done
fetch model.safetensors || need pytorch_model.bin
echo "✓ $dir is complete: ./sft --model $dir --data my.jsonl --output tuned"
