/*
 * check_plots.c - test/plots.sh: what it reads from a log, what it refuses, and, where there is a
 * gnuplot, that it draws.
 *
 * The logs here are written by hand; that the programs' own logs are understood is seen on one
 * short run of each kind.
 */
#include "program.h"

#include <check.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char work[64] = "/tmp/check_plots.XXXXXX";

/* Writes work/RUN/log.jsonl. */
static void write_log(const char *run, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", work, run);
    mkdir(path, 0777);
    strcat(path, "/log.jsonl");
    FILE *f = fopen(path, "w");
    ck_assert(f && fputs(text, f) >= 0 && !fclose(f));
}

/* test/plots.sh with these arguments, run in work; its output goes to work/text. */
static int plots(const char *before, const char *arguments) {
    char here[512];
    ck_assert(getcwd(here, sizeof here));
    return shell("cd %s && %s sh '%s/test/plots.sh' %s >text 2>&1", work, before, here, arguments);
}

/* What it printed. */
static const char *text(void) {
    static char buffer[16384];
    char path[128];
    snprintf(path, sizeof path, "%s/text", work);
    FILE *f = fopen(path, "r");
    ck_assert(f);
    buffer[fread(buffer, 1, sizeof buffer - 1, f)] = 0;
    fclose(f);
    return buffer;
}

static int says(const char *what) { return strstr(text(), what) != NULL; }

static const char supervised[] =
    "{\"step\": 10, \"loss\": 0.5, \"mean_token_accuracy\": 0.25, \"grad_norm\": 1e-05, \"epoch\": "
    "1}\n"
    "{\"step\": 10, \"eval_loss\": 2.5e-1, \"eval_mean_token_accuracy\": 0.75}\n"
    "{\"step\": 20, \"loss\": null, \"mean_token_accuracy\": NaN}\n"
    "{\"step\": 30, \"loss\": -0.125, \"mean_token_accuracy\": 1}\n";

START_TEST(a_log_becomes_a_table) {
    write_log("a", supervised);
    ck_assert_int_eq(plots("", "--table a"), 0);
    // a figure that is null or no number has no row; accuracies are in percent
    ck_assert_str_eq(text(),
                     "a\tLoss, nats per scored token\tloss\t10\t0.5\n"
                     "a\tLoss, nats per scored token\tloss\t30\t-0.125\n"
                     "a\tLoss, nats per scored token\teval_loss\t10\t0.25\n"
                     "a\tTokens predicted right, %\tmean_token_accuracy\t10\t25\n"
                     "a\tTokens predicted right, %\tmean_token_accuracy\t30\t100\n"
                     "a\tTokens predicted right, %\teval_mean_token_accuracy\t10\t75\n"
                     "a\tNorm of the gradient, before clipping, norm\tgrad_norm\t10\t1e-05\n");
    // without held-out figures, and together with another run whose name is unusual
    write_log("b's 한국", "{\"step\": 1, \"loss\": 3}\n");
    ck_assert_int_eq(plots("", "--table a \"b's 한국\""), 0);
    ck_assert(says("a\tLoss, nats per scored token\tloss\t10\t0.5\n") &&
              says("b's 한국\tLoss, nats per scored token\tloss\t1\t3\n"));
}
END_TEST

START_TEST(the_keys_say_what_kind_of_run_it_was) {
    write_log("reward",
              "{\"step\": 1, \"loss\": 0.7, \"accuracy\": 0.5, \"margin\": 0.1, "
              "\"rewards/chosen\": 2, \"rewards/rejected\": 1.9}\n");
    ck_assert_int_eq(plots("", "--table reward"), 0);
    ck_assert(says("Loss, nats per pair\tloss\t1\t0.7\n") && says("%\taccuracy\t1\t50\n") &&
              says("\tmargin\t1\t0.1\n") && says("rewards/rejected\t1\t1.9\n"));
    write_log("ppo",
              "{\"step\": 1, \"objective/scores\": 4, \"objective/kl_exact\": 0.5, "
              "\"objective/raw_scores\": 5, \"objective/kl_k1\": 0.4, \"lengths/mean\": 7, "
              "\"loss/value_avg\": 0.3, \"val/explained_variance\": 0.25, \"lr\": 0.1, "
              "\"policy/entropy_avg\": null, \"policy/clipfrac_avg\": 0.02}\n{\"step\": 1, "
              "\"eval/reward\": 1, \"eval/kl\": 2, \"eval/kl_exact\": 3}\n");
    ck_assert_int_eq(plots("", "--table ppo"), 0);
    ck_assert(says("objective/raw_scores\t1\t5\n") &&
              says("KL from the reference, exact, nats per answer\tobjective/kl_exact\t1\t0.5\n"));
    ck_assert(says("eval/kl_exact\t1\t3\n") && says("policy/clipfrac_avg\t1\t2\n") &&
              says("eval/reward\t1\t1\n") && !says("entropy_avg"));
    ck_assert(says("lengths/mean\t1\t7\n") && says("loss/value_avg\t1\t0.3\n") &&
              says("val/explained_variance\t1\t25\n") && says("\tlr\t1\t0.1\n"));
    // without the exact KL of --exact_kl, the sampled one, and it says so
    write_log("ppo",
              "{\"step\": 1, \"objective/kl_exact\": null, \"objective/raw_scores\": 5, "
              "\"objective/kl_k1\": 0.4}\n");
    ck_assert_int_eq(plots("", "--table ppo"), 0);
    ck_assert(says("KL from the reference, sampled, nats per answer\tobjective/kl_k1\t1\t0.4\n"));
    write_log("constitutional",
              "{\"step\": 1, \"loss\": 0.5, \"revised\": 0.9}\n{\"step\": 1, \"eval_breaches\": "
              "0.1, \"eval_criticised\": 0.2}\n");
    ck_assert_int_eq(plots("", "--table constitutional"), 0);
    ck_assert(says("eval_breaches\t1\t10\n") && says("Loss on the revisions"));
}
END_TEST

START_TEST(what_is_wrong_is_said_and_ends_with_2) {
    const struct {
        const char *log, *says;
    } bad[] = {{"", "is empty"},
               {"loss 0.5\n", "line 1 is no JSON object"},
               {"{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2, \"lo\n{\"step\": 3, \"loss\": 0.5}\n",
                "line 2 is no JSON object"},
               {"{\"step\": 1, \"loss\": 0.5}\nnonsense\nnonsense\n", "line 2 is no JSON object"},
               {"{\"loss\": 0.5, \"step\": 1}\n", "line 1 does not begin with \"step\""},
               {"{\"step\": 1.5, \"loss\": 0.5}\n", "line 1 does not begin with \"step\""},
               {"{\"step\": 1, \"loss\": \"x\"}\n", "line 1 has no number for \"loss\""},
               {"{\"step\": 1, \"loss\": 0.5 0.5}\n", "line 1 has no number for \"loss\""},
               {"{\"step\": 1, \"loss\": {\"a\": 1}}\n", "line 1 has no number for \"loss\""},
               {"{\"step\": 1, loss: 2}\n", "line 1 has no key"},
               {"{\"step\": 1, \"lr\": 2}\n", "none of the keys"},
               {"{\"step\": 1, \"loss\": null}\n", "none of the keys"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_log("bad", bad[i].log);
        ck_assert_int_eq(plots("", "bad"), 2);
        ck_assert_msg(says("error: bad/log.jsonl") && says(bad[i].says), "%s -> %s", bad[i].log,
                      text());
    }
    write_log("a", supervised);
    ck_assert(plots("", "") == 2 && says("which run?"));
    ck_assert(plots("", "--table") == 2 && says("which run?"));
    ck_assert(plots("", "nowhere") == 2 && says("nowhere is not there"));
    ck_assert(plots("", "a/log.jsonl") == 2 && says("is no directory"));
    ck_assert(plots("mkdir -p none &&", "none") == 2 && says("none has no log.jsonl"));
    ck_assert(plots("mkdir -p d/log.jsonl &&", "d") == 2 && says("d/log.jsonl cannot be read"));
    ck_assert(plots("", "a a a a a a a") == 2 && says("too many"));
    write_log("reward", "{\"step\": 1, \"loss\": 0.7, \"rewards/chosen\": 2}\n");
    ck_assert(plots("", "a reward") == 2 && says("a is a supervised run and reward a reward one"));
}
END_TEST

START_TEST(half_a_last_line_is_left_out) {
    write_log("cut",
              "{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2, \"loss\": 0.4}\n{\"step\": 3, \"lo");
    ck_assert_int_eq(plots("", "--table cut"), 0);
    ck_assert(says("note: cut/log.jsonl line 3, the last,") && says("loss\t2\t0.4\n") &&
              !says("\t3\t"));
}
END_TEST

START_TEST(without_gnuplot_it_says_what_to_install) {
    write_log("a", supervised);
    ck_assert_int_eq(plots("GNUPLOT=/nowhere/gnuplot", "a"), 2);
    ck_assert(says("apt-get install gnuplot-nox"));
    ck_assert_int_eq(plots("GNUPLOT=/nowhere/gnuplot", "--table a"), 0);
    write_log("none", "{\"step\": 1, \"loss\": null, \"revised\": 0}\n");
    ck_assert_int_eq(plots("GNUPLOT=true", "none"), 2);
    ck_assert(says("has no numbers to draw"));
    // one that fails or draws nothing leaves no picture, nor half of one
    ck_assert_int_eq(plots("GNUPLOT=false", "a"), 1);
    ck_assert_int_eq(plots("GNUPLOT=true", "a"), 1);
    ck_assert_int_eq(shell("test \"$(ls -A %s/a)\" = log.jsonl", work), 0);
}
END_TEST

/* How often this occurs in a file of work. */
static int count(const char *name, const char *what) {
    static char svg[1 << 17];
    char path[256];
    snprintf(path, sizeof path, "%s/%s", work, name);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s", path);
    svg[fread(svg, 1, sizeof svg - 1, f)] = 0;
    fclose(f);
    int n = 0;
    for (const char *p = svg; (p = strstr(p, what)); p++) n++;
    return n;
}

START_TEST(with_gnuplot_it_draws) {
    if (shell("command -v gnuplot >/dev/null 2>&1")) {
        puts("gnuplot is not here: no picture drawn");
        return;
    }
    write_log("a", supervised);
    ck_assert_msg(plots("", "a") == 0, "%s", text());
    ck_assert(says("a/plot.png and a/plot.svg: 3 panels of 1 run"));
    ck_assert_int_eq(
        shell("head -c 8 %s/a/plot.png | od -An -tx1 | grep -q '89 50 4e 47 0d 0a 1a 0a'", work),
        0);
    ck_assert_int_eq(count("a/plot.svg", "</svg>"), 1);
    ck_assert_int_eq(count("a/plot.svg", ">nats per scored token<"), 1);
    ck_assert_int_eq(count("a/plot.svg", ">optimiser step<"), 3);
    ck_assert_int_eq(count("a/plot.svg", "<text>held-out</text>"), 2);
    ck_assert_int_eq(count("a/plot.svg", "<use xlink:href='#gpPt6'"),
                     8);  // the points of three panels' training, 2, 2 and 1, and their legends
    ck_assert_int_eq(shell("ls -A %s/a | grep -q tmp", work), 1);
    // several in one picture, in the directory of the first; the names as they are
    write_log("b's 한국 _x^2", "{\"step\": 1, \"loss\": 3}\n{\"step\": 2, \"loss\": 2}\n");
    ck_assert_msg(plots("", "\"b's 한국 _x^2\" a") == 0, "%s", text());
    ck_assert_int_eq(count("b's 한국 _x^2/plots.svg", "<text>b's 한국 _x^2, training</text>"), 1);
    ck_assert_int_eq(count("b's 한국 _x^2/plots.svg", "<text>a, held-out</text>"), 2);
    // one point, and a value that never changes
    write_log("flat", "{\"step\": 1, \"loss\": 3}\n");
    ck_assert_msg(plots("", "flat") == 0, "%s", text());
    write_log("flat", "{\"step\": 1, \"loss\": 0}\n{\"step\": 2, \"loss\": 0}\n");
    ck_assert_msg(plots("", "flat") == 0, "%s", text());
    ck_assert(says("1 panel of 1 run"));
}
END_TEST

/* The title says which run it is, the legends what differs between several. */
START_TEST(a_picture_says_what_it_shows) {
    if (shell("command -v gnuplot >/dev/null 2>&1")) return;
    static const char log[] =
        "{\"step\": 0, \"eval_loss\": 4}\n{\"step\": 1, \"loss\": 3}\n{\"step\": 2, \"loss\": 2}\n";
    ck_assert_int_eq(shell("mkdir -p %s/runs/low/sft %s/runs/high/sft", work, work), 0);
    write_log("runs/low/sft", log);
    write_log("runs/high/sft", log);
    ck_assert_msg(plots("", "runs/low/sft") == 0, "%s", text());
    ck_assert_int_eq(count("runs/low/sft/plot.svg", ">supervised, run runs/low/sft<"), 1);
    ck_assert_int_eq(
        shell("echo '{\"program\": \"lora\", \"model\": \"m/x\"}' >%s/runs/low/sft/run.json", work),
        0);
    ck_assert_msg(plots("", "runs/low/sft") == 0, "%s", text());
    ck_assert_int_eq(count("runs/low/sft/plot.svg", ">lora, model m/x, run runs/low/sft<"), 1);
    ck_assert_msg(plots("", "runs/low/sft runs/high/sft") == 0, "%s", text());
    ck_assert_int_eq(count("runs/low/sft/plots.svg", ">lora: low, high<"), 1);
    ck_assert_int_eq(count("runs/low/sft/plots.svg", "<text>low, training</text>"), 1);
    ck_assert_int_eq(count("runs/low/sft/plots.svg", "<text>high, held-out</text>"), 1);
    // runs that differ in a flag are called by it
    static const char *const rates[][2] = {{"low", "1e-05"}, {"high", "0.001"}};
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(
            shell("printf '{\\n  \"program\": \"sft\",\\n  \"flags\": {\\n    \"model\": "
                  "\"m/x\",\\n    \"learning_rate\": %s,\\n    \"output\": \"%s\"\\n  }\\n}\\n' "
                  ">%s/runs/%s/sft/run.json",
                  rates[i][1], rates[i][0], work, rates[i][0]),
            0);
    ck_assert_msg(plots("", "runs/low/sft runs/high/sft") == 0, "%s", text());
    ck_assert_int_eq(count("runs/low/sft/plots.svg", "<text>learning_rate 0.001, training</text>"),
                     1);
    ck_assert_int_eq(count("runs/low/sft/plots.svg", "<text>learning_rate 1e-05, held-out</text>"),
                     1);
    // two directories with one name are told apart by those above them; one is named by its path
    ck_assert_msg(plots("", "runs/low/sft runs/low/sft") == 0, "%s", text());
    ck_assert_int_eq(count("runs/low/sft/plots.svg", "<text>runs/low/sft, training</text>"), 2);
    // the value of step 0, before training, is drawn
    ck_assert_int_eq(plots("", "--table runs/low/sft"), 0);
    ck_assert(says("\teval_loss\t0\t4\n"));
}
END_TEST

START_TEST(the_programs_own_logs_are_understood) {
    const struct {
        const char *program, *flags, *key[4];
    } run[] = {
        {"sft",
         "--max_steps 2 --logging_steps 1 --eval_steps 1 --eval_samples 1 --max_new_tokens 2",
         {"\tloss\t2\t", "\teval_loss\t0\t", "\teval_mean_token_accuracy\t2\t",
          "\tmean_token_accuracy\t1\t"}},
        {"reward",
         "--max_steps 2 --logging_steps 1 --eval_steps 1 --per_device_train_batch_size 4 --eval "
         "$W/pairs.jsonl",
         {"\taccuracy\t2\t", "\teval_margin\t1\t", "\trewards/chosen\t2\t",
          "\teval_accuracy\t2\t"}},
        {"ppo",
         "--max_steps 2 --logging_steps 1 --eval_steps 1 --eval_samples 2 --batch_size 4 "
         "--num_ppo_epochs 1 --critic_warmup_steps 0 --response_length 4",
         {"\tobjective/raw_scores\t2\t", "\teval/kl_exact\t1\t", "\tpolicy/entropy_avg\t2\t",
          "\tpolicy/clipfrac_avg\t1\t"}},
        {"constitutional",
         "--model test/tiny/chat --prompts $W/prompts.jsonl --eval $W/prompts.jsonl --max_steps 1 "
         "--eval_steps 1 --max_new_tokens 64 --logging_steps 1 "
         "--max_iterations 1 --constitution test/tiny/constitution.json --breaches silly",
         {"\teval_breaches\t1\t", "\teval_criticised\t1\t", "\tloss\t1\t", "Held-out"}}};
    ck_assert_int_eq(shell("head -n 6 test/tiny/preferences-eval.jsonl >%s/pairs.jsonl && head -n "
                           "3 test/tiny/prompts.jsonl >%s/prompts.jsonl",
                           work, work),
                     0);
    for (size_t i = 0; i < sizeof run / sizeof *run; i++) {
        ck_assert_int_eq(shell("W=%s; %s/%s --output %s/own-%s %s >%s/own.txt 2>&1", work, build(),
                               run[i].program, work, run[i].program, run[i].flags, work),
                         0);
        char arguments[64];
        snprintf(arguments, sizeof arguments, "--table own-%s", run[i].program);
        ck_assert_msg(plots("", arguments) == 0, "%s", text());
        for (int k = 0; k < 4; k++)
            ck_assert_msg(says(run[i].key[k]), "%s: %s not in\n%s", run[i].program, run[i].key[k],
                          text());
    }
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    const TTest *const tests[] = {
        a_log_becomes_a_table,
        the_keys_say_what_kind_of_run_it_was,
        what_is_wrong_is_said_and_ends_with_2,
        half_a_last_line_is_left_out,
        without_gnuplot_it_says_what_to_install,
        with_gnuplot_it_draws,
        a_picture_says_what_it_shows,
        the_programs_own_logs_are_understood,
    };
    int failed = run_tests("plots", NULL, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", work);
    return failed != 0;
}
