#!/bin/sh
# Draws the log of a run: RUN/log.jsonl becomes RUN/plot.png and RUN/plot.svg. Several runs are
# drawn in one picture, plots.png and plots.svg in the directory of the first.
#
#   sh test/plots.sh RUN [RUN ...]           RUN: the --output of a program
#   sh test/plots.sh --table RUN [RUN ...]   prints the data instead: run, panel, key, step, value,
#                                            separated by tabs
#
# The kind of a run is recognised by the keys in its log. Exit status: 2 if an argument or a log is
# wrong or gnuplot is missing, 1 if the pictures cannot be made or written. GNUPLOT: the gnuplot to
# use.
set -eu
export LC_ALL=C
give_up() { status=$1; shift; echo "error: $*" >&2; exit "$status"; }

# optimiser KEY: the panels of every kind of run; KEY: the learning rate's name in the log
optimiser() {
    echo 'Norm of the gradient, before clipping|norm|1|grad_norm=training'
    echo "Learning rate|rate|1|$1=training"
}

# panels KIND ESTIMATOR KEY KEY: one line per panel: title|y axis|factor|key=name in the legend ...
panels() {
    case $1 in
    supervised)
        echo 'Loss|nats per scored token|1|loss=training|eval_loss=held-out'
        keys='mean_token_accuracy=training|eval_mean_token_accuracy=held-out'
        echo "Tokens predicted right|%|100|$keys"
        optimiser learning_rate ;;
    reward)
        echo 'Loss|nats per pair|1|loss=training|eval_loss=held-out'
        keys='accuracy=training|eval_accuracy=held-out'
        echo "Pairs in which chosen has the higher reward|%|100|$keys"
        keys='margin=training|eval_margin=held-out'
        echo "Margin: reward of chosen less that of rejected|reward|1|$keys"
        echo 'Mean reward in training|reward|1|rewards/chosen=chosen|rewards/rejected=rejected'
        optimiser learning_rate ;;
    ppo)
        echo 'Reward of an answer|reward|1|objective/raw_scores=training|eval/reward=held-out'
        echo "KL from the reference, $2|nats per answer|1|$3=training|$4=held-out"
        echo 'Entropy of the policy|nats per token|1|policy/entropy_avg=training'
        echo 'Tokens whose ratio is clipped|%|100|policy/clipfrac_avg=training'
        echo 'Length of an answer|tokens|1|lengths/mean=training|eval/length=held-out'
        echo "The critic's loss|half the square|1|loss/value_avg=training"
        echo 'Variance of the return that the critic explains|%|100|val/explained_variance=training'
        optimiser lr ;;
    constitutional)
        echo 'Loss on the revisions|nats per scored token|1|loss=training'
        title='Held-out answers: breaches, and what the model criticises'
        echo "$title|%|100|eval_breaches=breaches|eval_criticised=criticised"
        optimiser learning_rate ;;
    esac
}

table=
[ "${1:-}" != --table ] || { table=yes; shift; }
[ $# -gt 0 ] || give_up 2 'which run? make plots RUN=out, where out was the --output of a' \
    'program; several: RUN="out1 out2"'
[ $# -le 6 ] || give_up 2 "$# runs are too many for one picture; name six at most"
work=$(mktemp -d)
new=
trap 'rm -rf "$work"; [ -z "$new" ] || rm -f "$out.png$new" "$out.svg$new"' EXIT
trap 'exit 130' INT TERM

# 1. Read each log, one flat JSON object of numbers and nulls per line, into $work/N: key, step,
#    value. A value that is no number becomes "-". The last line of an interrupted run may be
#    incomplete.
n=0
for run in "$@"; do
    n=$((n + 1)) log=$run/log.jsonl
    [ -e "$run" ] || give_up 2 "$run is not there; name the directory that --output named"
    [ -d "$run" ] || give_up 2 "$run is no directory; name the one that --output named"
    [ -e "$log" ] || give_up 2 "$run has no log.jsonl; was it the --output of a run?" \
        "Without --output nothing is written"
    [ -f "$log" ] && [ -r "$log" ] || give_up 2 "$log cannot be read"
    log=$log awk '
        problem { exit }
        $0 !~ /^\{.*\}$/ { problem = "is no JSON object"; next }
        {
            line = substr($0, 2, length($0) - 2) ", "
            for (first = 1; line != ""; first = 0) {
                if (!match(line, /^"[^"\\]+": */)) {
                    problem = "has no key where one is due: " substr(line, 1, 40)
                    next
                }
                key = substr(line, 2, index(substr(line, 2), "\"") - 1)
                line = substr(line, RLENGTH + 1)
                number = "-?[0-9]+(\\.[0-9]+)?([eE][-+]?[0-9]+)?"
                if (!match(line, "^(" number "|null|NaN|-?Infinity), *")) {
                    problem = "has no number for \"" key "\": " substr(line, 1, 40)
                    next
                }
                value = substr(line, 1, RLENGTH)
                line = substr(line, RLENGTH + 1)
                sub(/, *$/, "", value)
                if (value ~ /[NIu]/) value = "-"
                if (first && (key != "step" || value !~ /^[0-9]+$/)) {
                    problem = "does not begin with \"step\""
                    next
                }
                if (first) step = value
                else print key "\t" step "\t" value
            }
            good = NR
        }
        END {
            begin = "error: " ENVIRON["log"]
            if (!NR)
                print begin " is empty: the run ended before its first line, which comes after " \
                      "--logging_steps" >"/dev/stderr"
            else if (problem && (NR > good + 1 || !good))
                print begin " line " good + 1 " " problem >"/dev/stderr"
            else if (problem)
                print "note: " ENVIRON["log"] " line " NR ", the last, " problem "; left out" \
                      >"/dev/stderr"
            exit !good || NR > good + 1 ? 2 : 0
        }' "$log" >"$work/$n" || exit 2
done

# 2. Recognise the kind of run. Several runs must be of one kind.
has() {   # RUN KEY: does the log of this run have a number for KEY?
    awk -F '\t' -v key="$2" '
        $1 == key && $3 != "-" { found = 1; exit }
        END { exit !found }' "$work/$1"
}
kind_of() {
    if has "$1" objective/raw_scores; then echo ppo
    elif has "$1" rewards/chosen; then echo reward
    elif has "$1" revised; then echo constitutional
    elif has "$1" loss; then echo supervised
    else echo unknown; fi
}
n=0 kind= estimator=exact kl=objective/kl_exact eval_kl=eval/kl_exact
for run in "$@"; do
    n=$((n + 1)) is=$(kind_of $n)
    [ "$is" != unknown ] || give_up 2 "$run/log.jsonl has none of the keys by which a run is" \
        "known: loss, rewards/chosen, objective/raw_scores, revised"
    [ "${kind:=$is}" = "$is" ] ||
        give_up 2 "$1 is a $kind run and $run a $is one; name runs of one kind"
    [ "$is" != ppo ] || has $n objective/kl_exact ||
        { estimator=sampled kl=objective/kl_k1 eval_kl=eval/kl; }
done
panels "$kind" "$estimator" "$kl" "$eval_kl" >"$work/panels"

# series RUN KEY FACTOR: lines of step and value. A value that is no number gives an empty line,
# which interrupts the drawn line.
series() {
    awk -F '\t' -v key="$2" -v factor="$3" '
        $1 == key && $3 == "-" { print "" }
        $1 == key && $3 != "-" { printf "%s\t%.9g\n", $2, $3 * factor }' "$work/$1"
}
each() { echo "$1" | tr '|' '\n' >"$work/each"; }

# 3. Print the data as text
if [ -n "$table" ]; then
    while IFS='|' read -r title unit factor keys; do
        each "$keys"
        while IFS='=' read -r key label; do
            n=0
            for run in "$@"; do
                n=$((n + 1))
                series $n "$key" "$factor" | begin="$run	$title, $unit	$key" \
                    awk 'NF { print ENVIRON["begin"] "\t" $0 }'
            done
        done <"$work/each"
    done <"$work/panels"
    exit
fi

# What differs between the runs: their paths without the directories that all of them begin with,
# and without those that all of them end with. A line for each.
printf '%s\n' "$@" | awk '
    {
        n[NR] = split($0, part, "/")
        for (i = 1; i <= n[NR]; i++) path[NR, i] = part[i]
        least = NR == 1 || n[NR] < least ? n[NR] : least
        whole[NR] = $0
    }
    function same(from_end, i,   r, a, b) {
        a = from_end ? path[1, n[1] - i] : path[1, i + 1]
        for (r = 2; r <= NR; r++) {
            b = from_end ? path[r, n[r] - i] : path[r, i + 1]
            if (a "" != b "") return 0
        }
        return 1
    }
    END {
        while (first < least && same(0, first)) first++
        while (last + first < least && same(1, last)) last++
        for (r = 1; r <= NR; r++) {
            name = ""
            for (i = first + 1; i <= n[r] - last; i++)
                name = name (name == "" ? "" : "/") path[r, i]
            print name == "" ? whole[r] : name
        }
    }' >"$work/names"
# If the runs differ in one or two flags by their run.json, that says more than their paths.
n=0
for run in "$@"; do
    n=$((n + 1))
    [ ! -f "$run/run.json" ] || sed -n '/^  "flags": {/,/^  }/s/^    "\([a-z0-9_]*\)": /\1 /p' \
        "$run/run.json" | sed "s/,\$//; s/\"//g; s/^/$n /"
done | awk -v runs=$# '
    {
        flag = $2
        sub(/^[0-9]+ [^ ]+ */, "")
        said[flag, ++given[flag]] = $0
    }
    END {
        split("output resume overwrite_output_dir dry_run quiet progress_seconds", i)
        for (k in i) idle[i[k]] = 1
        for (flag in given) {
            if (given[flag] != runs || flag in idle) continue
            same = 1
            for (r = 2; r <= runs; r++) same = same && said[flag, r] == said[flag, 1]
            if (!same) differing[++m] = flag
        }
        if (m < 1 || m > 2 || runs < 2) exit
        for (r = 1; r <= runs; r++) {
            name = ""
            for (k = 1; k <= m; k++)
                name = name (k > 1 ? ", " : "") differing[k] " " said[differing[k], r]
            print name
        }
    }' >"$work/flags"
[ ! -s "$work/flags" ] || cp "$work/flags" "$work/names"
name_of() { sed -n "$1p" "$work/names"; }
# said RUN KEY: what run.json says, a text
said() {
    [ ! -f "$1/run.json" ] ||
        sed -n "s/^.*\"$2\": *\"\\([^\"]*\\)\".*\$/\\1/p" "$1/run.json" | head -n 1
}
heading=$(said "$1" program)
heading=${heading:-$kind}
model=$(said "$1" model)
model=${model#"$PWD"/}
[ $# -gt 1 ] || heading="$heading${model:+, model $model}, run $1"
[ $# -eq 1 ] || heading="$heading: $(paste -sd , "$work/names" | sed 's/,/, /g')"

# 4. Write gnuplot's commands. One run: one colour per line of a panel. Several runs: one colour per
#    run, and dashes for held-out values. The colours are Okabe and Ito's, which colour-blind
#    readers can distinguish.
gnuplot=${GNUPLOT:-gnuplot}
command -v "$gnuplot" >/dev/null 2>&1 || give_up 2 "$gnuplot is not there to draw:" \
    "apt-get install gnuplot-nox (sh test/plots.sh --table needs none)"
colour() { echo '#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #E69F00' | cut -d ' ' -f "$1"; }
quoted() { printf "'%s'" "$(printf %s "$1" | tr '\n\t' '  ' | sed "s/'/''/g")"; }
# marks COLUMN FILE ...: the distance of the tics of that axis: 1, 2 or 5 times a power of ten, so
# that there are about five tics
marks() {
    column=$1
    shift
    awk -v column="$column" 'NF && (low == "" || $column < low) { low = $column }
        NF && (high == "" || $column > high) { high = $column }
        END {
            if (low == high) { print "autofreq"; exit }
            fifth = (high - low) / 5
            power = 10 ^ int(log(fifth) / log(10) + 100) / 1e100
            times = fifth <= power ? 1 : fifth <= 2 * power ? 2 : fifth <= 5 * power ? 5 : 10
            print times * power
        }' "$@"
}
panels=0 names=$(($# > 1 ? 2 * $# : 1))   # rows of the legend
while IFS='|' read -r title unit factor keys; do
    plot= k=0
    each "$keys"
    while IFS='=' read -r key label; do
        k=$((k + 1)) n=0
        for run in "$@"; do
            n=$((n + 1)) file=$work/$panels.$k.$n
            series $n "$key" "$factor" >"$file"
            points=$(grep -c . "$file") || continue
            line=$k name=$label
            if [ $# -gt 1 ]; then line=$n name="$(name_of $n), $label"; fi
            style="with lines"   # a line of few points has a mark on each
            [ "$points" -gt 16 ] || style="with linespoints pt $((9 - 2 * k)) ps 0.6"
            plot="$plot${plot:+, }$(quoted "$file") using 1:2 $style lw 1.8 dt $k"
            plot="$plot lc rgb '$(colour $line)' title $(quoted "$name")"
        done
    done <"$work/each"
    [ -n "$plot" ] || continue
    printf 'set xtics %s\n' "$(marks 1 "$work/$panels".*)"
    printf 'set ytics %s\n' "$(marks 2 "$work/$panels".*)"
    # a rate may be constant, and is seen against 0
    printf 'set yrange %s\n' "$([ "$unit" = rate ] && echo '[0:*]' || echo '[*:*]')"
    printf 'set title %s\nset ylabel %s\nplot %s\n' "$(quoted "$title")" "$(quoted "$unit")" "$plot"
    panels=$((panels + 1))
done <"$work/panels" >"$work/plots"

[ "$panels" -gt 0 ] || give_up 2 "$1/log.jsonl has no numbers to draw"
name=plot
[ $# -eq 1 ] || name=plots
out=$1/$name new=.tmp-$$
columns=$((panels > 6 ? 3 : panels > 1 ? 2 : 1))
rows=$(((panels + columns - 1) / columns))
width=$((columns * 470)) height=$((30 + rows * (300 + 18 * names)))
{
    cat <<END
set encoding utf8
set style line 9 lc rgb '#b0b0b0' lw 0.5
set border 3 lc rgb '#606060'
set tics nomirror out
set grid ytics ls 9
set key outside below Left reverse noenhanced maxcols $((names > 1 ? 1 : 2))
set title noenhanced offset 0,-0.5
set ylabel noenhanced
set xlabel '$([ "$kind" = ppo ] && echo iteration || echo 'optimiser step')' offset 0,0.5
set lmargin 10
set rmargin 3
set bmargin $((4 + names))
set xrange [0:*]
END
    for kind in png svg; do
        if [ $kind = svg ]; then
            echo "set terminal svg size $width,$height background 'white' font 'sans-serif,12'"
        else
            cairo="set terminal pngcairo size $width,$height font 'sans,10'"
            echo "if (strstrt(GPVAL_TERMINALS, 'pngcairo')) { $cairo }" \
                "else { set terminal png size $width,$height }"
        fi
        printf 'set output %s\n' "$(quoted "$out.$kind$new")"
        printf 'set multiplot layout %d,%d title %s noenhanced\n' $rows $columns \
            "$(quoted "$heading")"
        cat "$work/plots"
        echo 'unset multiplot
unset output'
    done
} >"$work/commands"
(: >"$out.png$new") 2>/dev/null || give_up 1 "cannot write into $1"
"$gnuplot" "$work/commands" >"$work/said" 2>&1 ||
    give_up 1 "$gnuplot failed: $(tail -n 1 "$work/said")"
# Remove gnuplot's empty groups and the attributes with default values, which are half of the svg.
sed 's/ stroke-linecap="butt" stroke-linejoin="miter"//
     s/<tspan[^>]*>\([^<]*\)<\/tspan>/\1/
     s/^[[:space:]]*//
     /^$/d' "$out.svg$new" |
    awk '
        /^<g .*>$/ { if (group != "") print group; group = $0; next }
        group != "" { if ($0 != "</g>") print group "\n" $0; group = ""; next }
        { print }' >"$work/svg"
cat "$work/svg" >"$out.svg$new"
for kind in png svg; do
    [ -s "$out.$kind$new" ] || give_up 1 "$gnuplot made no $kind: $(tail -n 1 "$work/said")"
    mv "$out.$kind$new" "$out.$kind" || give_up 1 "cannot write $out.$kind"
done
echo "$out.png and $out.svg: $panels panel$([ $panels -eq 1 ] || echo s) of $#" \
    "run$([ $# -eq 1 ] || echo s)"
