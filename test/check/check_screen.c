/*
 * check_screen.c - what a person sees of a run: the table, lines that fit the terminal, colours, a
 * line now and then where there is no terminal, --quiet, -h and --version.
 *
 * The programs run their built-in examples, with few steps, on a pseudo terminal.
 */
#define _GNU_SOURCE  // defines: posix_openpt, ptsname, strcasestr

#include "rl/dialogues.h"
#include "rl/pairs.h"
#include "rl/rollout_task.h"
#include "run/table.h"

#include "terminal.h"

#include "program.h"

#include <math.h>

static char work[64] = "/tmp/check_screen.XXXXXX";

static const char *const programs[] = {"sft",  "reward",  "ppo",    "constitutional",
                                       "lora", "adapter", "full_ft"};
enum { PROGRAMS = sizeof programs / sizeof *programs };

/* Short runs of the examples */
static const char *flags_of(const char *program) {
    if (!strcmp(program, "ppo"))
        return "--max_steps 3 --logging_steps 1 --eval_steps 2 --eval_samples 4 --batch_size 8 "
               "--response_length 16";
    if (!strcmp(program, "constitutional"))
        return "--max_steps 3 --logging_steps 1 --eval_steps 2 --eval_samples 4 "
               "--prompts $W/prompts.jsonl --model test/tiny/chat --eval $W/prompts.jsonl "
               "--constitution test/tiny/constitution.json --stop_phrases 'answer is good' "
               "--breaches 'silly you!|get lost.' --max_new_tokens 64 "
               "--per_device_train_batch_size 4";
    return "--max_steps 3 --logging_steps 1 --eval_steps 2 --per_device_train_batch_size 4";
}

/* ---- the table ------------------------------------------------------------------------------- */

START_TEST(a_table_fits_and_is_aligned) {
    static const int widths[] = {80, 120};
    for (int p = 0; p < PROGRAMS; p++)
        for (int w = 0; w < 2; w++) {
            Str heading = {0}, row = {0};
            double value[MOST_COLUMNS];
            const Table t = table_layout(programs[p], 9999, widths[w], "");
            table_heading(&t, &heading);
            for (int i = 0; i < t.n; i++) value[i] = 0.125;
            table_row(&t, "20/9999", value, 22041.4, 7500, false, &row);
            const char *second = strchr(heading.s, '\n') + 1;
            ck_assert_msg((int)strlen(second) <= widths[w], "%s: %s", programs[p], second);
            ck_assert_uint_eq(strlen(second), row.n);
            ck_assert_uint_le(strcspn(heading.s, "\n"), strlen(second));
            // a heading ends where the number below it ends
            for (size_t i = 0; i < row.n; i++)
                if (second[i] != ' ' && (second[i + 1] == ' ' || !second[i + 1]))
                    ck_assert_msg(row.s[i] != ' ' && (row.s[i + 1] == ' ' || !row.s[i + 1]),
                                  "%s\n%s", heading.s, row.s);
            ck_assert(strstr(row.s, " 22041 ") && strstr(row.s, " 2h 05m"));
            ck_assert(strstr(second, "loss") || !strcmp(programs[p], "ppo"));
            free(heading.s);
            free(row.s);
        }
    // a wider screen has more columns
    ck_assert_int_gt(table_layout("ppo", 20, 120, "").n, table_layout("ppo", 20, 80, "").n);
    ck_assert_int_eq(table_layout("sft", 20, 120, "").n, table_layout("sft", 20, 80, "").n);
}
END_TEST

START_TEST(numbers_of_a_row) {
    const Table t = table_layout("sft", 100, 80, "");  // loss, accuracy, norm, learning rate
    Str row = {0};
    table_row(&t, "1/100", (double[]){3.25, 0.5, 12345, 5e-5}, NAN, NAN, false, &row);
    ck_assert_str_eq(row.s, "   1/100    3.2500    50.0 %  1.23e+04     5e-05        -         -");
    row.n = 0;
    table_row(&t, "held out", (double[]){0.5, 1, NAN, NAN}, NAN, NAN, true, &row);
    ck_assert_str_eq(row.s, "held out    0.5000   100.0 %");
    row.n = 0;
    table_row(&t, "2/100", (double[]){1e-7, NAN, 0, 0}, 1999.6, 59, false, &row);
    ck_assert_str_eq(row.s, "   2/100     1e-07         -     0.000         0     2000      59 s");
    free(row.s);
}
END_TEST

START_TEST(no_number_is_wider_than_its_column) {
    static const Form forms[] = {AS_LOSS, AS_SHARE, AS_REWARD, AS_RATE, AS_COUNT, AS_LENGTH};
    static const double digits[] = {1, 1.23456789, 5, 8.61, 9.4999, 9.96, 9.9996, 9.99999999};
    for (int width = 6; width <= 8; width++)
        for (size_t f = 0; f < sizeof forms / sizeof *forms; f++)
            for (int power = -320; power <= 300; power++)
                for (size_t d = 0; d < 2 * sizeof digits / sizeof *digits; d++) {
                    const double x = (d % 2 ? -1 : 1) * digits[d / 2] * pow(10, power);
                    Str text = {0};
                    table_number(&text, forms[f], width, x);
                    ck_assert_msg(text.n > 0 && text.n <= (size_t)width, "%g: \"%s\"", x, text.s);
                    // half of its last digit is at most what is lost; 0 and > 1e99 say a range
                    const double read = strtod(text.s, NULL),
                                 unit = forms[f] == AS_SHARE && strchr(text.s, '%') ? 100 : 1;
                    const double y = forms[f] == AS_SHARE ? 100 * x : x;
                    if (strchr("<>", *text.s))
                        ck_assert(fabs(y) > 1e98);
                    else if ((forms[f] == AS_LOSS || forms[f] == AS_REWARD) && fabs(x) > 1e-90)
                        ck_assert_msg(fabs(read - y) <= 0.5 * fabs(y), "%g: %s", x, text.s);
                    else
                        ck_assert_msg(fabs(read - y) <= fmax(unit, 0.5 * fabs(y)), "%g: %s", x,
                                      text.s);
                    free(text.s);
                }
    static const struct {
        double x;
        int width;
        const char *text;
    } cases[] = {{8.61e-05, 6, "9e-05"}, {0.000302, 6, "0.0003"}, {-100.123, 6, "-100.1"},
                 {-0.0004, 6, "-4e-04"}, {0.125, 6, "0.125"},     {12345, 6, "12345"},
                 {-123456, 6, "-1e+05"}, {0, 6, "0.000"},         {8.61e-05, 8, "8.61e-05"},
                 {-1e100, 6, "<-1e99"},  {1e-100, 6, "1e-100"},   {-1e-100, 6, "0"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Str text = {0};
        table_number(&text, AS_REWARD, cases[i].width, cases[i].x);
        ck_assert_str_eq(text.s, cases[i].text);
        free(text.s);
    }
}
END_TEST

START_TEST(a_column_that_cannot_have_a_figure_is_left_out) {
    Str heading = {0};
    const Table t = table_layout("constitutional", 20, 120, " eval_breaches ");
    table_heading(&t, &heading);
    ck_assert(strstr(heading.s, "cised") && !strstr(heading.s, "breaches"));
    ck_assert_int_eq(t.n + 1, table_layout("constitutional", 20, 120, "").n);
    // of two figures one is enough
    ck_assert_int_eq(table_layout("ppo", 20, 120, " objective/kl_exact ").n,
                     table_layout("ppo", 20, 120, "").n);
    free(heading.s);
    // a judge without right answers, and answers without --breaches
    ck_assert_int_eq(
        shell("W=%s; export W; %s/ppo %s --eval $W/prompts-alone.jsonl >%s/out 2>&1 && "
              "! grep -q 'step .*correct' %s/out && grep -q 'step .*clipped' %s/out",
              work, build(), flags_of("ppo"), work, work, work),
        0);
    ck_assert_int_eq(shell("W=%s; export W; %s/constitutional %s --breaches '' >%s/out 2>&1 && "
                           "! grep -q 'step .*breaches' %s/out && grep -q 'step .*cised' %s/out",
                           work, build(), flags_of("constitutional"), work, work, work),
                     0);
}
END_TEST

/* The sentences that ppo ends with. */
static char *rollout_sentences(const char *judge, double raw_before, double raw_after,
                               double right_before, double right_after) {
    RolloutTask t = {.reward_model = judge,
                     .answers = 72,
                     .before = {.raw = raw_before},
                     .after = {.raw = raw_after},
                     .correct_before = right_before,
                     .correct_after = right_after};
    char none[1] = "";
    t.shown_after[0].s = none;
    hear();
    rollout_task_report(&t);
    return heard();
}

START_TEST(the_last_sentences_of_ppo_are_true) {
    static const struct {
        bool manners;
        double raw[2], right[2];
        const char *says, *says_not;
    } cases[] = {
        {true, {0.1, 1}, {0.3, 0.31}, "no facts", "may be chance"},
        {false, {0.1, 1}, {0.3, 0.31}, "may be chance", "no facts"},
        {false, {0.1, 1}, {0, 0}, "About as many", "chance"},
        {false, {0.1, 1}, {0.3, 0.9}, "More answers", "chance"},
        {true, {0.1, 1}, {0.9, 0.3}, "Fewer answers", "no facts"},
        {true, {0.0921, 0.0924}, {0.9, 0.3}, "stayed at 0.092", "rise"},
        {true, {0.0921, 0.05}, {0.9, 0.3}, "did not rise: it went from 0.092 to 0.050", "Fewer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *judge = cases[i].manners ? example_file("tiny/reward") : "elsewhere/reward";
        char *text = rollout_sentences(judge, cases[i].raw[0], cases[i].raw[1], cases[i].right[0],
                                       cases[i].right[1]);
        ck_assert_msg(strstr(text, cases[i].says) && !strstr(text, cases[i].says_not), "%zu: %s", i,
                      text);
        free(text);
    }
    // without a reward model, another program judges
    char *text = rollout_sentences(NULL, 0.1, 1, 0.3, 0.31);
    ck_assert_msg(strstr(text, "may be chance") && !strstr(text, "no facts"), "%s", text);
    free(text);
}
END_TEST

/* The sentence that reward ends with, of 10 pairs in which the longer answer is better in so many.
 */
static char *pair_sentence(int longer, double accuracy) {
    enum { PAIRS = 10 };
    size_t start[3 * PAIRS + 1] = {0};
    int which[PAIRS];
    float p_chosen[PAIRS];
    for (int i = 0; i < PAIRS; i++) {
        const size_t chosen = i < longer ? 5 : 3;
        start[3 * i + 1] = start[3 * i] + 1;
        start[3 * i + 2] = start[3 * i + 1] + chosen;
        start[3 * i + 3] = start[3 * i + 2] + 4;
        which[i] = i;
        p_chosen[i] = 1;
    }
    Pairs pairs = {.n = PAIRS, .start = start, .p_chosen = p_chosen};
    hear();
    pairs_conclude(&(PairSet){&pairs, PAIRS, which}, accuracy);
    return heard();
}

START_TEST(the_last_sentence_of_reward_is_true) {
    static const struct {
        int longer;
        double accuracy;
        const char *says, *says_not;
    } cases[] = {
        {5, 0.375, "no better than guessing", "length"},
        {9, 0.5, "no better than guessing", "length"},
        {5, 0.8, "Guessing gives 50 %.", "length"},
        {9, 0.8, "90.0 %: the model may have learned nothing but the length", "better than"},
        {2, 0.7, "80.0 %: the model may have learned nothing but the length", "better than"},
        {6, 0.8, "the length alone 60.0 %.", "nothing"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = pair_sentence(cases[i].longer, cases[i].accuracy);
        ck_assert_msg(strstr(text, cases[i].says) && !strstr(text, cases[i].says_not), "%zu: %s", i,
                      text);
        free(text);
    }
}
END_TEST

/* What is said of a change of the share of 72 answers that break a principle. */
static char *conduct_sentence(double before, double after) {
    hear();
    conducts_compare(72, &(Conduct){.breaches = before}, &(Conduct){.breaches = after});
    return heard();
}

START_TEST(the_last_sentence_of_constitutional_is_true) {
    static const struct {
        double before, after;
        const char *says;
    } cases[] = {{0.5, 0.1, "Fewer answers break the principles than"},
                 {0, 0.3, "More answers break the principles than"},
                 {0.5, 0.49, "The difference may be chance."},
                 {0, 0.014, "The difference may be chance."},
                 {0.5, 0.5, "As many answers break the principles as"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = conduct_sentence(cases[i].before, cases[i].after);
        const char *second = strchr(text, '\n') + 1;
        ck_assert_msg(!strncmp(second, cases[i].says, strlen(cases[i].says)), "%s", text);
        free(text);
    }
    char *text = conduct_sentence(0, 0);
    ck_assert_str_eq(strchr(text, '\n') + 1, "");
    free(text);
}
END_TEST

START_TEST(constitutional_ends_with_what_has_changed) {
    // after the last rows of the table come the dialogues, the figures, and what they mean
    ck_assert_int_eq(
        shell("W=%s; export W; %s/constitutional %s --eval_samples 6 --output $W/saved --data "
              "test/tiny/domain.jsonl >$W/out 2>&1 && "
              "awk '/^ *3\\/3 /{if(!n){n=1}} /^held out /{if(n==1&&!m)m=NR} /saved/{if(n&&!s)s=NR} "
              "/^held-out answers .*after/{a=NR} /say one of --breaches  /{c=NR} END{exit "
              "!(m && s && a>m && a>s && c>a)}' $W/out",
              work, build(), flags_of("constitutional")),
        0);
}
END_TEST

START_TEST(numbers_compare_as_they_are_printed) {
    ck_assert_int_eq(compare_printed(0.0921, 0.0924, 3), 0);
    ck_assert_int_eq(compare_printed(0.0916, 0.0914, 3), 1);
    ck_assert_int_eq(compare_printed(75.6, 86, 1), -1);
    ck_assert_int_eq(compare_printed(-0.0001, 0.0001, 3), 0);
}
END_TEST

/* ---- lines of a terminal --------------------------------------------------------------------- */

START_TEST(a_long_line_is_broken_at_a_blank) {
    Str screen = {0};
    int status;
    const char *where = NULL;
    char command[512];
    snprintf(command, sizeof command,
             "NO_COLOR=1 %s/sft --model test/tiny --data %s/nowhere-with-quite-a-long-name.jsonl "
             "--per_device_train_batch_size 3",
             build(), work);
    if (!on_terminal(44, command, NULL, &screen, &status)) return;
    ck_assert_int_eq(status, 2);
    ck_assert_msg(widest(&screen, &where) <= 44, "%.100s", where);
    ck_assert_msg(strstr(screen.s, "\r\n  ") != NULL, "%s", screen.s);
    ck_assert(strstr(screen.s, "error: ") != NULL);
    free(screen.s);
}
END_TEST

/* Is text on the screen, however its lines are broken? */
static bool shows(const Str *screen, const char *text) {
    for (const char *from = screen->s; *from; from++) {
        const char *p = from, *q = text;
        while (*q && *p) {
            if (*q == ' ') {
                if (!strchr(" \r\n", *p)) break;
                p += strspn(p, " \r\n");
                q++;
            } else if (*p++ != *q++) {
                q--;
                break;
            }
        }
        if (!*q) return true;
    }
    return false;
}

START_TEST(no_line_of_an_example_is_wider_than_the_terminal) {
    static const int widths[] = {80, 120};
    for (int p = 0; p < PROGRAMS; p++)
        for (int w = 0; w < 2; w++) {
            Str screen = {0};
            int status;
            const char *where = NULL;
            char command[1024];
            snprintf(command, sizeof command, "NO_COLOR=1; export NO_COLOR; W=%s; %s/%s %s", work,
                     build(), programs[p], flags_of(programs[p]));
            if (!on_terminal(widths[w], command, NULL, &screen, &status)) return;
            ck_assert_msg(status == 0, "%s: %d\n%s", programs[p], status, screen.s);
            const int columns = widest(&screen, &where);
            ck_assert_msg(columns <= widths[w], "%s: %d columns: %.200s", programs[p], columns,
                          where);
            ck_assert(!strchr(screen.s, 033));
            // what is done comes first, then the flags, then the table
            const char *const order[] = {"model: ",  "machine: ",         "data: ",   "steps: ",
                                         "memory: ", "flags that differ", "  tokens", "3/3 "};
            const char *at = screen.s;
            for (size_t k = 0; k < sizeof order / sizeof *order; k++) {
                const char *next = strstr(at, order[k]);
                ck_assert_msg(next != NULL, "%s: no \"%s\" after\n%.300s", programs[p], order[k],
                              at);
                at = next;
            }
            ck_assert_msg(shows(&screen, "peak memory"), "%s", screen.s);
            free(screen.s);
        }
}
END_TEST

START_TEST(colours_are_for_a_terminal_that_wants_them) {
    static const struct {
        const char *before;
        bool colour;
    } cases[] = {{"TERM=xterm; export TERM; unset NO_COLOR;", true},
                 {"TERM=xterm; NO_COLOR=1; export TERM NO_COLOR;", false},
                 {"TERM=xterm; NO_COLOR=; export TERM NO_COLOR;", true},
                 {"TERM=dumb; export TERM; unset NO_COLOR;", false}};
    char command[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Str screen = {0};
        int status;
        snprintf(command, sizeof command, "%s %s/sft --max_steps 1 --eval_samples 0",
                 cases[i].before, build());
        if (!on_terminal(80, command, NULL, &screen, &status)) return;
        ck_assert_int_eq(status, 0);
        ck_assert_msg((strchr(screen.s, 033) != NULL) == cases[i].colour, "%s\n%s", cases[i].before,
                      screen.s);
        free(screen.s);
    }
    ck_assert_int_eq(shell("TERM=xterm %s/sft --max_steps 1 --eval_samples 0 >%s/file 2>&1 && "
                           "! grep -q \"$(printf '\\033')\" %s/file",
                           build(), work, work),
                     0);
}
END_TEST

/* ---- without a terminal ---------------------------------------------------------------------- */

START_TEST(a_line_now_and_then_without_a_terminal) {
    static const struct {
        const char *program, *flags, *says[3];
    } runs[] = {{"sft",
                 "",
                 {"measuring held-out records", "answering held-out prompts: ", "0 of 4 examples"}},
                {"reward", "", {"measuring pairs: ", "tokens/s  [0-9]* s left", NULL}},
                {"ppo", "", {"rollout: ", "scoring: ", "answering held-out prompts"}},
                {"constitutional", "", {"dialogues 1 to ", "writing ", " examples"}}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        ck_assert_int_eq(shell("W=%s; export W; %s/%s %s --progress_seconds 1e-6 >%s/often 2>&1 && "
                               "%s/%s %s >%s/usual 2>&1 && "
                               "%s/%s %s --progress_seconds 0 >%s/never 2>&1",
                               work, build(), runs[i].program, flags_of(runs[i].program), work,
                               build(), runs[i].program, flags_of(runs[i].program), work, build(),
                               runs[i].program, flags_of(runs[i].program), work),
                         0);
        for (int k = 0; k < 3 && runs[i].says[k]; k++) {
            ck_assert_msg(shell("grep -q '%s' %s/often", runs[i].says[k], work) == 0, "%s: %s",
                          runs[i].program, runs[i].says[k]);
            if (strstr(runs[i].says[k], ": "))
                ck_assert_msg(shell("grep -q '%s' %s/usual %s/never", runs[i].says[k], work, work),
                              "%s: %s, too often", runs[i].program, runs[i].says[k]);
        }
        // what is counted is named with its count alone; the rate and the time are in each line
        ck_assert_int_ne(shell("grep -q '  examples\\|^examples\\|  pairs' %s/often", work), 0);
        ck_assert_int_ne(
            shell("grep '^step [23]/' %s/often | grep -vq 'tokens/s  [0-9]* s left'", work), 0);
        // lines of the table are in all of them
        ck_assert_int_eq(shell("for f in often usual never; do grep -q '^ *3/3  ' %s/$f || exit 1; "
                               "done; ! grep -q \"$(printf '\\r')\" %s/often",
                               work, work),
                         0);
    }
}
END_TEST

START_TEST(quiet_prints_errors_only) {
    ck_assert_int_eq(shell("%s/sft --max_steps 2 --eval_samples 1 --max_new_tokens 2 --quiet "
                           ">%s/out 2>%s/err && ! test -s %s/out && ! test -s %s/err",
                           build(), work, work, work, work),
                     0);
    ck_assert_int_eq(shell("%s/sft --quiet --model test/tiny --data %s/nowhere >%s/out 2>%s/err",
                           build(), work, work, work),
                     2);
    ck_assert_int_eq(shell("grep -q '^error: ' %s/err && ! test -s %s/out", work, work), 0);
    // an answer is what was asked for; a note is not
    ck_assert_int_eq(shell("%s/sft --model test/tiny --prompt Anna --max_new_tokens 2 "
                           "--temperature 0 --quiet >%s/out 2>%s/err && test -s %s/out && "
                           "! test -s %s/err",
                           build(), work, work, work, work),
                     0);
    ck_assert_int_eq(shell("%s/sft --model test/tiny --prompt Anna --max_new_tokens 2 "
                           "--temperature 0 >%s/loud 2>%s/err && cmp %s/loud %s/out && "
                           "grep -q ^note: %s/err",
                           build(), work, work, work, work, work),
                     0);
}
END_TEST

START_TEST(a_quiet_program_prints_no_comment) {
    // a conversation, and a merge alone
    Str screen = {0};
    int status;
    char command[512];
    snprintf(command, sizeof command,
             "TERM=dumb %s/sft --model test/tiny/chat --chat --max_new_tokens 2 --temperature 0 "
             "--quiet",
             build());
    if (!on_terminal(80, command, "/reset\n/exit\n", &screen, &status)) return;
    ck_assert_int_eq(status, 0);
    ck_assert_msg(!strstr(screen.s, "Each line is a turn") && !strstr(screen.s, "begins anew"),
                  "%s", screen.s);
    free(screen.s);
    ck_assert_int_eq(
        shell("W=%s; %s/lora --model test/tiny --data test/tiny/domain.jsonl --max_steps 3 "
              "--warmup_steps 0 "
              "--eval_samples 0 --output $W/lora --quiet && "
              "%s/lora --model test/tiny --adapter $W/lora --merge $W/merged --verify --quiet "
              ">$W/out 2>&1 && ! test -s $W/out && test -s $W/merged/model.safetensors && "
              "%s/lora --model test/tiny --adapter $W/lora --merge $W/merged2 --verify | "
              "grep -q 'the merged model is in'",
              work, build(), build(), build()),
        0);
}
END_TEST

START_TEST(a_narrow_short_help_has_its_text_on_lines_of_its_own) {
    static const int widths[] = {40, 60, 80};
    for (int w = 0; w < 3; w++) {
        Str screen = {0};
        int status;
        char command[256];
        const char *where = NULL;
        snprintf(command, sizeof command, "NO_COLOR=1 %s/sft -h", build());
        if (!on_terminal(widths[w], command, NULL, &screen, &status)) return;
        ck_assert_msg(widest(&screen, &where) <= widths[w], "%.100s", where);
        // three words of a flag's text are on one line
        ck_assert_msg(strstr(screen.s, "Resume from") != NULL, "%s", screen.s);
        ck_assert_msg((strstr(screen.s, "\n      Resume from") != NULL) == (widths[w] < 70), "%s",
                      screen.s);
        free(screen.s);
    }
}
END_TEST

START_TEST(short_help_and_version) {
    for (int p = 0; p < PROGRAMS; p++) {
        const char *name = programs[p];
        ck_assert_int_eq(
            shell("%s/%s -h >%s/short && %s/%s --help >%s/long && "
                  "test $(grep -c '^  \\./%s' %s/short) = 3 && "
                  "test $(wc -l <%s/short) -lt 40 && "
                  "test $(wc -l <%s/long) -gt 60 && grep -q -- '--help' %s/short",
                  build(), name, work, build(), name, work, name, work, work, work, work),
            0);
        ck_assert_int_eq(
            shell("%s/%s --version | grep -q '^%s of posttrain.c [0-9]'", build(), name, name), 0);
        // the table that is printed is explained
        ck_assert_int_eq(shell("grep -q '^  gradient norm  *[a-z]' %s/long", work), 0);
        for (int help = 0; help < 2; help++) {
            Str screen = {0};
            int status;
            const char *where = NULL;
            char command[256];
            snprintf(command, sizeof command, "NO_COLOR=1 %s/%s %s", build(), name,
                     help ? "--help" : "-h");
            if (!on_terminal(80, command, NULL, &screen, &status)) return;
            ck_assert_int_eq(status, 0);
            ck_assert_msg(widest(&screen, &where) <= 80, "%.100s", where);
            free(screen.s);
        }
    }
    // what the numbers of ppo are
    ck_assert_int_eq(shell("%s/ppo --help | grep -q '12 clipping the ratio'", build()), 0);
    // an example of a command line is one that is accepted, up to its files
    ck_assert_int_eq(shell("for p in sft reward ppo constitutional lora adapter full_ft; do "
                           "%s/$p -h | sed -n 's/^  \\(\\.\\/[a-z_]* --.*\\)/\\1/p'; done | "
                           "while read -r line; do "
                           "sh -c \"%s/${line#./}\" </dev/null 2>&1 | grep -q 'error: there is no "
                           "flag\\|has no effect\\|both given' && echo \"$line\"; done >%s/wrong; "
                           "! test -s %s/wrong",
                           build(), build(), work, work),
                     0);
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    setenv("OMP_NUM_THREADS", "1", 1);
    unsetenv("COLUMNS");
    if (shell("head -n 6 test/tiny/prompts.jsonl >%s/prompts.jsonl && "
              "echo '{\"prompt\": \"Who are you?\"}' >%s/prompts-alone.jsonl",
              work, work))
        return 1;
    const TTest *const tests[] = {
        a_table_fits_and_is_aligned,
        numbers_of_a_row,
        no_number_is_wider_than_its_column,
        a_column_that_cannot_have_a_figure_is_left_out,
        numbers_compare_as_they_are_printed,
        the_last_sentences_of_ppo_are_true,
        the_last_sentence_of_reward_is_true,
        the_last_sentence_of_constitutional_is_true,
        constitutional_ends_with_what_has_changed,
        a_long_line_is_broken_at_a_blank,
        no_line_of_an_example_is_wider_than_the_terminal,
        colours_are_for_a_terminal_that_wants_them,
        a_line_now_and_then_without_a_terminal,
        quiet_prints_errors_only,
        a_quiet_program_prints_no_comment,
        a_narrow_short_help_has_its_text_on_lines_of_its_own,
        short_help_and_version,
    };
    const int failed = run_tests("screen", NULL, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", work);
    return failed != 0;
}
