/*
 * check_page.c - the dumps of the programs and the page that test/page makes of them.
 *
 * The numbers of a dump are compared with those of the run's log, which are computed elsewhere. The
 * data in a page are compared with the dump, value by value. Where there is a chromium, it loads
 * each page: nothing may be written to its console, and the landmarks, the list and the tokens must
 * be in its document.
 */
#include "text/json.h"

#include "run_files.h"

#include "program.h"

/* ---- files ----------------------------------------------------------------------------------- */

/* A whole file, to be freed. */
static char *slurp(const char *path) {
    Str text = {0};
    Error e;
    ck_assert_msg(read_file(path, 1 << 28, &text, &e) == 0, "%s", e.text);
    return text.s;
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p++) n++;
    return n;
}

/* Runs the generator on these arguments, run in the directory; what it prints is in `said`. */
static int page(const char *arguments) {
    char *programs = resolve_path(build()), *tools = resolve_path("test/page");
    const int status =
        shell("cd %s && '%s/page' '%s' %s >said 2>&1", directory, programs, tools, arguments);
    free(programs);
    free(tools);
    read_said();
    return status;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* The lines of a JSONL file as an array. */
static json_t *lines_of(const char *path) {
    json_t *all = json_array();
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s", path);
    json_error_t where;
    for (;;) {
        json_t *o = json_loadf(f, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, &where);
        if (!o) break;
        json_array_append_new(all, o);
    }
    ck_assert_msg(feof(f), "%s: %s", path, where.text);
    fclose(f);
    return all;
}

/* The JSON in the page's script of that id; NULL: there is none. */
static json_t *script_of(const char *text, const char *id) {
    char mark[128];
    json_error_t where;
    snprintf(mark, sizeof mark, "<script type=\"application/json\" id=\"%s\">", id);
    const char *from = strstr(text, mark);
    if (!from) return NULL;
    from += strlen(mark);
    const char *to = strstr(from, "</script>");
    ck_assert(to != NULL);
    json_t *o = json_loadb(from, (size_t)(to - from), JSON_ALLOW_NUL, &where);
    ck_assert_msg(o != NULL, "%s: %s", id, where.text);
    return o;
}

/* The lines of the page's file number k as one array. */
static json_t *embedded(const char *text, int k) {
    json_t *all = json_array();
    for (int c = 0;; c++) {
        char id[64];
        snprintf(id, sizeof id, "lines-%d-%d", k, c);
        json_t *chunk = script_of(text, id);
        if (!chunk) return all;
        json_array_extend(all, chunk);
        json_decref(chunk);
    }
}

/* Compares the page's file k with a dump, value by value. */
static void same_values(const char *page_text, int k, const char *dump) {
    json_t *shown = embedded(page_text, k), *dumped = lines_of(dump);
    ck_assert_int_gt((int)json_array_size(dumped), 0);
    ck_assert_msg(json_equal(shown, dumped), "%s differs from what its page holds", dump);
    json_decref(shown);
    json_decref(dumped);
}

static double number(const json_t *o, const char *name) {
    const json_t *x = json_object_get(o, name);
    ck_assert_msg(json_is_number(x), "no number %s", name);
    return json_number_value(x);
}

static double total(const json_t *o, const char *name) {
    const json_t *x = json_object_get(o, name);
    double sum = 0;
    ck_assert_msg(json_is_array(x), "no array %s", name);
    for (size_t i = 0; i < json_array_size(x); i++) sum += json_number_value(json_array_get(x, i));
    return sum;
}

static size_t length(const json_t *o, const char *name) {
    return json_array_size(json_object_get(o, name));
}

/* The last value of a key in a log. */
static double logged(const char *run, const char *key) {
    char path[128];
    snprintf(path, sizeof path, "%s/log.jsonl", run);
    json_t *log = lines_of(at(path));
    double value = NAN;
    for (size_t i = 0; i < json_array_size(log); i++) {
        const json_t *x = json_object_get(json_array_get(log, i), key);
        if (json_is_number(x)) value = json_number_value(x);
    }
    json_decref(log);
    return value;
}

/* The texts of an array, one after another; to be freed. */
static char *joined(const json_t *o, const char *name) {
    Str text = {0};
    str_add(&text, "", 0);
    for (size_t i = 0; i < length(o, name); i++)
        str_printf(&text, "%s", json_string_value(json_array_get(json_object_get(o, name), i)));
    return text.s;
}

/* ---- short runs of the seven programs -------------------------------------------------------- */

#define SHORT "--max_steps 2 --logging_steps 1 --eval_steps 1 --save_steps 0 "
#define SUPERVISED                                                                       \
    SHORT                                                                                \
    "--model test/tiny --per_device_train_batch_size 2 --gradient_accumulation_steps 1 " \
    "--eval_samples 0 --data test/tiny/sft.jsonl --eval W/records.jsonl "                \
    "--dump_tokens W/PROGRAM/tokens.jsonl"

static const struct {
    const char *program, *flags, *dump;
} runs[] = {
    {"sft", SUPERVISED, "tokens.jsonl"},
    {"full_ft", SUPERVISED, "tokens.jsonl"},
    {"lora", SUPERVISED, "tokens.jsonl"},
    {"adapter", SUPERVISED, "tokens.jsonl"},
    {"reward",
     SHORT "--model test/tiny/chat --per_device_train_batch_size 2 --gradient_accumulation_steps 1 "
           "--data test/tiny/preferences.jsonl --eval W/pairs.jsonl "
           "--dump_tokens W/PROGRAM/tokens.jsonl",
     "tokens.jsonl"},
    {"ppo",
     SHORT "--model test/tiny/chat --reward_model test/tiny/reward --data test/tiny/prompts.jsonl "
           "--eval W/prompts.jsonl --eval_samples 3 --batch_size 4 --num_ppo_epochs 2 "
           "--response_length 24 --learning_rate 1e-4 --dump_rollouts W/PROGRAM/rollouts.jsonl",
     "rollouts.jsonl"},
    {"constitutional",
     SHORT "--model test/tiny/chat --prompts W/prompts.jsonl --eval W/prompts.jsonl "
           "--constitution test/tiny/constitution.json --max_new_tokens 48 --max_iterations 1 "
           "--dump_dialogues W/PROGRAM/held-out.jsonl",
     "held-out.jsonl"},
};
enum { RUNS = sizeof runs / sizeof *runs };

/* Runs program k with these flags, W being the directory and PROGRAM its name. */
static int run(int k, const char *more) {
    const int status = shell(
        "echo '%s/%s --output W/PROGRAM %s %s' | sed 's,W/,%s/,g; s/PROGRAM/%s/g' "
        ">%s/command && sh %s/command >%s/said 2>&1",
        build(), runs[k].program, runs[k].flags, more, directory, runs[k].program, directory,
        directory, directory);
    read_said();
    return status;
}

static void make_runs(void) {
    make_directory();
    ck_assert_int_eq(shell("cd test/tiny && head -n 3 sft-eval.jsonl >%s/records.jsonl && "
                           "head -n 2 sft-korean-eval.jsonl >>%s/records.jsonl && "
                           "head -n 3 preferences-eval.jsonl >%s/pairs.jsonl && "
                           "head -n 3 prompts.jsonl >%s/prompts.jsonl",
                           directory, directory, directory, directory),
                     0);
    for (int k = 0; k < RUNS; k++)
        if (run(k, "")) ck_abort_msg("%s: %s", runs[k].program, said.s);
}

/* Of a dump: its lines of that step. */
static json_t *step_of(const char *path, int step) {
    json_t *all = lines_of(at(path)), *some = json_array();
    for (size_t i = 0; i < json_array_size(all); i++)
        if (number(json_array_get(all, i), "step") == step)
            json_array_append(some, json_array_get(all, i));
    json_decref(all);
    return some;
}

/* ---- the dumps ------------------------------------------------------------------------------- */

START_TEST(token_losses_add_up_to_the_logged_loss) {
    for (int k = 0; k < 4; k++) {
        char path[64];
        snprintf(path, sizeof path, "%s/tokens.jsonl", runs[k].program);
        json_t *before = step_of(path, 0), *after = step_of(path, 2);
        ck_assert_int_eq((int)json_array_size(before), 5);
        ck_assert_int_eq((int)json_array_size(after), 5);
        double loss = 0;
        int scored = 0;
        for (size_t i = 0; i < 5; i++) {
            const json_t *o = json_array_get(after, i), *was = json_array_get(before, i);
            const json_t *losses = json_object_get(o, "loss");
            const size_t n = length(o, "tokens");
            ck_assert(length(o, "pieces") == n && json_array_size(losses) == n &&
                      length(o, "likeliest") == n && n > 10);
            ck_assert(json_equal(json_object_get(o, "pieces"), json_object_get(was, "pieces")));
            ck_assert(!json_equal(losses, json_object_get(was, "loss")));
            loss += total(o, "loss");
            for (size_t j = 0; j < n; j++) scored += json_is_number(json_array_get(losses, j));
            // the prompt is not scored; the end of the text is
            char *text = joined(o, "pieces");
            ck_assert(json_is_null(json_array_get(losses, 0)));
            ck_assert(json_is_number(json_array_get(losses, n - 1)));
            ck_assert_msg(strstr(text, "### Response:\n") && strstr(text, "<|endoftext|>"), "%s",
                          text);
            free(text);
        }
        ck_assert_double_eq_tol(loss / scored, logged(runs[k].program, "eval_loss"), 1e-5);
        json_decref(before);
        json_decref(after);
    }
}
END_TEST

START_TEST(values_of_pairs_end_in_the_logged_rewards) {
    json_t *after = step_of("reward/tokens.jsonl", 2), *before = step_of("reward/tokens.jsonl", 0);
    double margin = 0;
    ck_assert_int_eq((int)json_array_size(after), 3);
    ck_assert_int_eq((int)json_array_size(before), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *o = json_array_get(after, i);
        static const char *const names[] = {"chosen", "rejected"};
        for (int k = 0; k < 2; k++) {
            const json_t *answer = json_object_get(o, names[k]);
            const json_t *values = json_object_get(answer, "value");
            const size_t n = json_array_size(values);
            ck_assert(n > 3 && length(answer, "pieces") == n && length(answer, "tokens") == n);
            ck_assert_double_eq(json_number_value(json_array_get(values, n - 1)),
                                number(answer, "score"));
            margin += (k ? -1 : 1) * number(answer, "score") / 3;
        }
    }
    ck_assert_double_eq_tol(margin, logged("reward", "eval_margin"), 1e-5);
    json_decref(after);
    json_decref(before);
}
END_TEST

START_TEST(rollouts_have_texts_ratios_and_held_out_answers) {
    json_t *lines = step_of("ppo/rollouts.jsonl", 2);
    double score = 0, held_out = 0, kl = 0, apart = 0;
    int answers = 0, held = 0;
    for (size_t i = 0; i < json_array_size(lines); i++) {
        const json_t *o = json_array_get(lines, i);
        const bool is_held = json_object_get(o, "held_out") != NULL;
        const size_t T = length(o, "logp");
        ck_assert(length(o, "pieces") == length(o, "tokens"));
        char *text = joined(o, "pieces"), expected[2048];
        snprintf(expected, sizeof expected, "%s%s%s",
                 json_string_value(json_object_get(o, "prompt")),
                 json_string_value(json_object_get(o, "response")),
                 number(o, "ended") != 0 ? "<|endoftext|>" : "");
        ck_assert_str_eq(text, expected);
        free(text);
        *(is_held ? &held : &answers) += 1;
        *(is_held ? &held_out : &score) += number(o, "score");
        if (is_held) continue;
        kl += total(o, "logp") - total(o, "ref_logp");
        ck_assert(length(o, "ratio") == T && length(o, "advantage") == T);
        for (size_t t = 0; t < T; t++) {
            const double r = json_number_value(json_array_get(json_object_get(o, "ratio"), t));
            ck_assert(r > 0);
            apart = fmax(apart, fabs(r - 1));
        }
    }
    ck_assert(answers == 4 && held == 3);
    ck_assert_double_eq_tol(score / 4, logged("ppo", "objective/raw_scores"), 1e-5);
    ck_assert_double_eq_tol(kl / 4, logged("ppo", "objective/kl_k1"), 1e-4);
    ck_assert_double_eq_tol(held_out / 3, logged("ppo", "eval/reward"), 1e-5);
    ck_assert_double_gt(apart, 1e-4);  // the second epoch's ratios, after one update
    json_decref(lines);
    lines = step_of("ppo/rollouts.jsonl", 0);  // held-out answers before training
    ck_assert_int_eq((int)json_array_size(lines), 3);
    json_decref(lines);
}
END_TEST

START_TEST(dialogues_are_dumped_before_and_after) {
    for (int step = 0; step <= 2; step++) {
        json_t *lines = step_of("constitutional/held-out.jsonl", step);
        ck_assert_int_eq((int)json_array_size(lines), 3);
        const json_t *first = json_array_get(lines, 0);
        ck_assert(json_is_string(json_object_get(first, "init_response")) &&
                  json_is_array(json_object_get(first, "rounds")));
        json_decref(lines);
    }
}
END_TEST

START_TEST(labels_have_both_orders) {
    ck_assert_int_eq(shell("%s/constitutional --model test/tiny/chat --pairs %s/pairs.jsonl "
                           "--constitution test/tiny/constitution.json --feedback "
                           "%s/constitutional/labels.jsonl >%s/said 2>&1",
                           build(), directory, directory, directory),
                     0);
    json_t *lines = lines_of(at("constitutional/labels.jsonl"));
    ck_assert_int_eq((int)json_array_size(lines), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *o = json_array_get(lines, i);
        const double p = number(o, "p_chosen");
        ck_assert_double_ge(p, 0.5);
        ck_assert_double_eq_tol(p, (number(o, "p_chosen_first") + number(o, "p_chosen_second")) / 2,
                                1e-6);
    }
    json_decref(lines);
}
END_TEST

START_TEST(a_resumed_run_completes_the_same_dump) {
    for (int k = 0; k < RUNS; k++) {
        char dump[128];
        if (k > 0 && k < 4) continue;  // the same code as sft
        snprintf(dump, sizeof dump, "%s/%s", runs[k].program, runs[k].dump);
        ck_assert_int_eq(run(k, "--overwrite_output_dir --save_steps 1 --keep_moments"), 0);
        ck_assert_int_eq(shell("mv %s %s", at(dump), at("whole")), 0);
        ck_assert_int_eq(shell("grep -v '^{\"step\": 2' %s >%s; printf '{\"step\": 2, \"half' >>%s",
                               at("whole"), at(dump), at(dump)),
                         0);
        char more[256];
        snprintf(more, sizeof more, "--save_steps 1 --keep_moments --resume %s/%s/checkpoint-1",
                 directory, runs[k].program);
        ck_assert_int_eq(run(k, more), 0);
        ck_assert_msg(shell("cmp %s %s", at(dump), at("whole")) == 0, "%s", runs[k].program);
    }
}
END_TEST

START_TEST(a_dump_without_held_out_records_is_refused) {
    ck_assert_int_eq(shell("%s/sft --model test/tiny --data test/tiny/sft.jsonl --max_steps 1 "
                           "--validation_split_percentage 0 --dump_tokens %s/none >%s/said 2>&1",
                           build(), directory, directory),
                     2);
    read_said();
    assert_said("--dump_tokens has no effect, because nothing is held out");
    ck_assert_int_eq(shell("%s/reward --model test/tiny/chat --data test/tiny/preferences.jsonl "
                           "--max_steps 1 --validation_split_percentage 0 --dump_tokens %s/none "
                           ">%s/said 2>&1",
                           build(), directory, directory),
                     2);
    ck_assert_int_eq(shell("%s/sft --dump_tokens %s/nowhere/x --max_steps 1 >%s/said 2>&1", build(),
                           directory, directory),
                     2);
    read_said();
    assert_said("--dump_tokens");
}
END_TEST

/* ---- the page -------------------------------------------------------------------------------- */

START_TEST(the_page_of_each_program_holds_its_dump) {
    for (int k = 0; k < RUNS; k++) {
        char path[128], dump[128];
        ck_assert_msg(page(runs[k].program) == 0, "%s", said.s);
        snprintf(path, sizeof path, "%s/page.html", runs[k].program);
        snprintf(dump, sizeof dump, "%s/%s", runs[k].program, runs[k].dump);
        char *text = slurp(at(path));
        same_values(text, 0, at(dump));
        json_t *data = script_of(text, "data"), *log;
        snprintf(path, sizeof path, "%s/log.jsonl", runs[k].program);
        log = lines_of(at(path));
        const json_t *one = json_array_get(json_object_get(data, "runs"), 0);
        ck_assert(json_equal(json_object_get(one, "log"), log));
        ck_assert_int_eq((int)number(one, "left_out"), 0);
        json_decref(log);
        json_decref(data);
        free(text);
    }
}
END_TEST

START_TEST(its_index_has_the_sums_of_the_dump) {
    ck_assert_int_eq(page("ppo"), 0);
    char *text = slurp(at("ppo/page.html"));
    json_t *data = script_of(text, "data"), *lines = embedded(text, 0);
    const json_t *one = json_array_get(json_object_get(data, "runs"), 0);
    const json_t *file = json_array_get(json_object_get(one, "files"), 0);
    const json_t *columns = json_object_get(file, "columns");
    ck_assert_str_eq(json_string_value(json_object_get(file, "kind")), "rollouts");
    ck_assert_int_eq((int)number(file, "n"), (int)json_array_size(lines));
    for (size_t i = 0; i < json_array_size(lines); i++) {
        const json_t *o = json_array_get(lines, i);
#define COLUMN(name) json_number_value(json_array_get(json_object_get(columns, name), i))
        ck_assert(COLUMN("step") == number(o, "step"));
        ck_assert(COLUMN("score") == number(o, "score"));
        ck_assert(COLUMN("length") == (double)length(o, "logp"));
        ck_assert(COLUMN("held_out") == (json_object_get(o, "held_out") != NULL));
        ck_assert_double_eq_tol(COLUMN("kl_k1"), total(o, "logp") - total(o, "ref_logp"), 1e-9);
#undef COLUMN
    }
    json_decref(data);
    json_decref(lines);
    free(text);
}
END_TEST

START_TEST(several_runs_are_in_one_page) {
    ck_assert_int_eq(page("sft lora"), 0);
    char *text = slurp(at("sft/page.html"));
    same_values(text, 0, at("sft/tokens.jsonl"));
    same_values(text, 1, at("lora/tokens.jsonl"));
    json_t *data = script_of(text, "data");
    ck_assert_int_eq((int)json_array_size(json_object_get(data, "runs")), 2);
    json_decref(data);
    free(text);
}
END_TEST

/* A line of a rollout with this text as prompt, response and token; it is JSON. */
#define ROLLOUT(text)                                                                            \
    "{\"step\": 1, \"episode\": 0, \"line\": 1, \"prompt\": \"" text "\", \"response\": \"" text \
    "\", \"query\": 0, \"ended\": 0, \"score\": 1, \"tokens\": [1, 2], \"pieces\": [\"p\", "     \
    "\"" text                                                                                    \
    "\"], \"logp\": [-1], \"ref_logp\": [-1], \"kl\": [0], \"value\": [0], \"reward\": [1], "    \
    "\"advantage\": [0.5], \"return\": [1], \"ratio\": [1]}"

static const char hostile[] = "\xEF\xBB\xBF"  // a byte order mark
    ROLLOUT("</script><script>console.error('in')</script>")
    "\n" ROLLOUT("<!--<script>") "\r\n\n"
    ROLLOUT("<img src=x onerror=console.error(1)>\\u001b[2J\\u0000\xE2\x80\xA8\xE2\x80\xAE]]>&lt;")
    "\n" ROLLOUT("\\ud800") "\n" ROLLOUT("\x1b[31m") "\n" ROLLOUT("\xff\xfe") "\n"
    "{\"step\": 1, \"epi\n[1, 2]\nnull\nNaN\n{}\n"
    "{\"step\": 1, \"response\": \"x\", \"ref_logp\": \"</script>\"}\n"
    "{\"step\": 1, \"step\": 2, \"response\": \"x\", \"ref_logp\": [1]}\n"
    "{\"step\": 1, \"query\": 0, \"score\": 1, \"prompt\": \"\", \"response\": \"x\", \"tokens\": "
    "[1], \"logp\": [-1, -2], \"ref_logp\": [-1, -2], \"kl\": [0, 0]}\n"
    "{\"step\": 1, \"query\": 0, \"score\": 1, \"prompt\": \"\", \"response\": \"x\", \"tokens\": "
    "[1, 2], \"logp\": [-1, {}], \"ref_logp\": [-1, -2], \"kl\": [0, 0]}\n"
    "{\"step\": 1, \"query\": 0, \"score\": 1, \"prompt\": \"\", \"response\": \"x\", \"tokens\": "
    "[1], \"pieces\": [null], \"logp\": [-1], \"ref_logp\": [-1], \"kl\": [0]}\n";

static void make_hostile(void) {
    ck_assert_int_eq(shell("mkdir -p '%s/hos<b>tile'", directory), 0);
    write_text("hos<b>tile/rollouts.jsonl", hostile);
    write_text("hos<b>tile/log.jsonl",
               "{\"step\": 1, \"loss\": 2, \"</script><script>console.error('key')</script>\": 1}\n"
               "{\"step\": 1, \"loss\": NaN}\n{\"step\": 2, \"loss\": \"</script>\"}\nnonsense\n"
               "{\"step\": 3, \"loss\": 1}\n");
    write_text("hos<b>tile/other.jsonl", "{\"a\": 1}\n");
}

START_TEST(a_hostile_dump_is_harmless_and_its_bad_lines_are_named) {
    make_hostile();
    ck_assert_int_eq(page("'hos<b>tile'"), 0);
    for (int line = 5; line <= 17; line++) {
        char name[64];
        snprintf(name, sizeof name, "rollouts.jsonl:%d: ", line);
        assert_said(name);
    }
    assert_not_said("\x1b");
    assert_said("log.jsonl:2: ");
    assert_said("log.jsonl:3: ");
    assert_said("log.jsonl:4: ");
    assert_said("other.jsonl:1: ");
    char *text = slurp(at("hos<b>tile/page.html"));
    // data have no "<" and none of the bytes that do harm: the page's own elements are all
    json_t *data = script_of(text, "data"), *lines = embedded(text, 1);  // other.jsonl has none
    ck_assert_int_eq((int)json_array_size(lines), 3);
    ck_assert_int_eq(count(text, "<script"), 3);
    ck_assert_int_eq(count(text, "</script"), 3);
    ck_assert(!strstr(text, "<!--<") && !strstr(text, "<img") && !strchr(text, '\x1b') &&
              !strstr(text, "\xE2\x80\xA8") && !strstr(text, "<b>"));
    // and yet they are what the dump has
    json_error_t where;
    json_t *first = json_loads(ROLLOUT("</script><script>console.error('in')</script>"), 0, &where);
    ck_assert(json_equal(json_array_get(lines, 0), first));
    const json_t *third = json_object_get(json_array_get(lines, 2), "response");
    ck_assert_str_eq(json_string_value(third) + 36, "\x1b[2J");  // up to the NUL
    const json_t *one = json_array_get(json_object_get(data, "runs"), 0);
    ck_assert_int_eq((int)number(one, "left_out"), 3);
    const json_t *file = json_array_get(json_object_get(one, "files"), 1);
    ck_assert_int_eq((int)number(file, "left_out"), 13);
    json_decref(first);
    json_decref(data);
    json_decref(lines);
    free(text);
}
END_TEST

START_TEST(what_cannot_be_shown_is_refused) {
    ck_assert_int_eq(page(""), 2);
    assert_said("which run?");
    ck_assert_int_eq(page("nowhere"), 2);
    assert_said("nowhere: ");
    ck_assert_int_eq(shell("mkdir -p %s/empty", directory), 0);
    ck_assert_int_eq(page("empty"), 2);
    assert_said("holds no log.jsonl");
    ck_assert(access(at("empty/page.html"), F_OK) != 0);
    ck_assert_int_eq(shell("test -z \"$(ls -A %s/empty)\"", directory), 0);
    // a single file is a run as well
    ck_assert_int_eq(shell("cp %s/sft/tokens.jsonl %s/empty/", directory, directory), 0);
    ck_assert_int_eq(page("empty/tokens.jsonl"), 0);
    char *text = slurp(at("empty/page.html"));
    same_values(text, 0, at("empty/tokens.jsonl"));
    free(text);
}
END_TEST

/* The text between two quotes after `from`. */
static void quoted(const char *from, char *out, size_t room) {
    const char *begin = strchr(from, '\''), *end = begin ? strchr(begin + 1, '\'') : NULL;
    ck_assert(end && (size_t)(end - begin) < room);
    snprintf(out, room, "%.*s", (int)(end - begin - 1), begin + 1);
}

START_TEST(the_functions_that_it_names_exist) {
    char *text = slurp("test/page/charts.js");
    int named = 0;
    for (const char *p = text; (p = strstr(p, "fn: '")); p++, named++) {
        char name[64], file[128], call[80];
        quoted(p, name, sizeof name);
        const char *where = strstr(p, "file: '");
        ck_assert(where != NULL);
        quoted(where, file, sizeof file);
        char *source = slurp(file);
        snprintf(call, sizeof call, " %s(", name);
        ck_assert_msg(strstr(source, call) != NULL, "%s has no function %s", file, name);
        free(source);
    }
    ck_assert_int_ge(named, 25);
    free(text);
}
END_TEST

/* ---- in a browser ---------------------------------------------------------------------------- */

static bool chromium(void) {
    if (!shell("command -v chromium >/dev/null 2>&1 && chromium --version >/dev/null 2>&1"))
        return true;
    puts("chromium is not here: no page was loaded (apt-get install chromium)");
    return false;
}

/* Loads NAME/page.html in chromium; its document as text, to be freed. Fails if the browser
   says anything on its console. */
static char *loaded(const char *name, const char *flags) {
    ck_assert_int_eq(
        shell("cd %s && timeout 300 chromium --headless=new --no-sandbox --disable-gpu "
              "--disable-dev-shm-usage --user-data-dir=%s/browser --window-size=1440,2000 "
              "--virtual-time-budget=5000 --enable-logging=stderr %s --dump-dom "
              "\"file://%s/$(printf %%s '%s' | sed 's/</%%3C/g; s/>/%%3E/g')/page.html\" >dom "
              "2>console",
              directory, directory, flags, directory, name),
        0);
    char *console = slurp(at("console"));
    ck_assert_msg(!strstr(console, ":CONSOLE"), "%s: %s", name, strstr(console, ":CONSOLE"));
    free(console);
    return slurp(at("dom"));
}

START_TEST(chromium_shows_each_page) {
    if (!chromium()) return;
    for (int k = 0; k < RUNS; k++) {
        ck_assert_int_eq(page(runs[k].program), 0);
        char *dom = loaded(runs[k].program, k % 2 ? "--blink-settings=preferredColorScheme=0" : "");
        const bool tokens = strcmp(runs[k].program, "constitutional") != 0;
        static const char *const parts[] = {"<header>",
                                            "<nav aria-label=\"Contents\"><a href=\"#curves\">",
                                            "<main id=\"main\">",
                                            "<footer>",
                                            "<section aria-labelledby=\"curves\">",
                                            "role=\"feed\"",
                                            "role=\"img\" tabindex=\"0\" aria-label=\"Loss",
                                            "<article class=\"entry"};
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            if (!(i == 6 && !strcmp(runs[k].program, "ppo")))
                ck_assert_msg(strstr(dom, parts[i]) != NULL, "%s: no %s", runs[k].program,
                              parts[i]);
        if (tokens) {
            ck_assert(strstr(dom, "<section aria-labelledby=\"meaning\">") != NULL);
            ck_assert(strstr(dom, "<aside class=\"about\" aria-label=") != NULL);
            ck_assert_int_gt(count(dom, "data-t=\"0 0 0 "), 3);
            ck_assert_int_gt(count(dom, "--m: 0."), 3);
        }
        free(dom);
    }
}
END_TEST

/* Keys and buttons, pressed by a script at the end of a copy of the page. What it finds becomes
   attributes of the document. */
static const char keys[] =
    "<script>\n"
    "const list = document.querySelector('.list'), root = document.documentElement;\n"
    "const press = key => list.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));\n"
    "setTimeout(() => {\n"
    "  press('ArrowDown'); press('ArrowRight'); press('ArrowRight');\n"
    "  root.dataset.row = document.querySelector('.entry.on').getAttribute('aria-posinset');\n"
    "  root.dataset.numbers = [...document.querySelectorAll('.about td.n')]\n"
    "    .map(td => td.textContent.replace('\u2212', '-')).join(' ');\n"
    "  const sort = document.querySelectorAll('.tools select')[1];\n"
    "  sort.value = '1'; sort.dispatchEvent(new Event('change'));\n"
    "  root.dataset.sorted = [...document.querySelectorAll('.entry')]\n"
    "    .sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map(e => [...e.querySelectorAll(\n"
    "      '.head span')].find(s => s.textContent.startsWith('score')).textContent.slice(6)\n"
    "      .replace('\u2212', '-')).join(' ');\n"
    "  const held = document.querySelectorAll('.tools select')[3];\n"
    "  held.value = '1'; held.dispatchEvent(new Event('change'));\n"
    "  document.querySelector('.head button').click();\n"
    "  root.dataset.followed = [...document.querySelectorAll('.entry .head')]\n"
    "    .map(h => h.firstChild.textContent).join('; ');\n"
    "}, 300);\n"
    "</script>\n";

/* The value of an attribute in the document, to be freed. */
static char *attribute(const char *dom, const char *name) {
    char mark[64];
    snprintf(mark, sizeof mark, " data-%s=\"", name);
    const char *from = strstr(dom, mark);
    ck_assert_msg(from != NULL, "no %s", name);
    from += strlen(mark);
    return strndup(from, strcspn(from, "\""));
}

START_TEST(chromium_obeys_keys_and_shows_the_numbers_of_the_dump) {
    if (!chromium()) return;
    ck_assert_int_eq(page("ppo"), 0);
    ck_assert_int_eq(shell("mkdir -p %s/keys", directory), 0);
    char *text = slurp(at("ppo/page.html"));
    FILE *f = fopen(at("keys/page.html"), "w");
    ck_assert(f && fputs(text, f) >= 0 && fputs(keys, f) >= 0 && !fclose(f));
    char *dom = loaded("keys", ""), *row = attribute(dom, "row"),
         *sorted = attribute(dom, "sorted");
    char *numbers = attribute(dom, "numbers"), *followed = attribute(dom, "followed");
    ck_assert_str_eq(row, "2");
    // the second answer of iteration 1, its second token: eight numbers, in the order of the page
    json_t *lines = step_of("ppo/rollouts.jsonl", 1);
    const json_t *o = json_array_get(lines, 1);
    static const char *const names[] = {"reward",    "kl",     NULL,    "value",
                                        "advantage", "return", "ratio", NULL};
    ck_assert_int_eq((int)number(o, "episode"), 1);
    double logp[2];
    char *end = numbers;
    for (int q = 0; q < 8; q++) {
#define NUMBER(name) json_number_value(json_array_get(json_object_get(o, name), 1))
        logp[0] = NUMBER("logp");
        logp[1] = NUMBER("ref_logp");
        double expected = q == 2 ? logp[0] - logp[1] : q == 7 ? exp(logp[0]) : NUMBER(names[q]);
#undef NUMBER
        char *from = end;
        const double shown = strtod(from, &end);
        ck_assert_msg(end > from, "%d numbers in %s", q, numbers);
        ck_assert_msg(fabs(shown - expected) <= 1e-8 * fabs(expected), "%s shows %g, expected %g",
                      names[q] ? names[q] : "derived", shown, expected);
    }
    // sorted by score, the highest first
    double last = INFINITY, score;
    int n = 0;
    for (char *p = sorted; (score = strtod(p, &end), end > p); p = end, n++) {
        ck_assert_msg(score <= last, "%s", sorted);
        last = score;
    }
    ck_assert_int_eq(n, 8);
    ck_assert_str_eq(followed,
                     "held-out, before training; held-out, after step 1; held-out, after step 2");
    json_decref(lines);
    free(text);
    free(dom);
    free(row);
    free(sorted);
    free(numbers);
    free(followed);
}
END_TEST

START_TEST(chromium_shows_hostile_text_as_text) {
    if (!chromium()) return;
    make_hostile();
    ck_assert_int_eq(page("'hos<b>tile'"), 0);
    char *dom = loaded("hos<b>tile", "");
    ck_assert(strstr(dom, "&lt;/script&gt;&lt;script&gt;console.error('in')&lt;/script&gt;"));
    ck_assert(strstr(dom, "\xE2\x90\x9B[2J\xE2\x90\x80"));  // symbols for escape and NUL
    ck_assert(strstr(dom, "\xE2\x9F\xA8U+202E\xE2\x9F\xA9"));
    ck_assert(strstr(dom, "id=\"bad-lines\"") && strstr(dom, "line 17: "));
    ck_assert(strstr(dom, "hos&lt;b&gt;tile"));
    free(dom);
}
END_TEST

START_TEST(an_answer_of_a_pair_without_tokens_is_left_out) {
    ck_assert_int_eq(shell("mkdir -p %s/bare", directory), 0);
    write_text("bare/log.jsonl", "{\"step\": 1, \"loss\": 1}\n");
    write_text(
        "bare/pairs.jsonl",
        "{\"step\": 1, \"pair\": 0, \"prompt\": \"\", \"chosen\": {\"score\": 1, \"pieces\": "
        "[\"a\"], \"value\": [1]}, \"rejected\": {\"score\": 1, \"tokens\": [1], "
        "\"pieces\": [\"a\"], \"value\": [1]}}\n");
    ck_assert_int_eq(page("bare"), 0);
    assert_said("pairs.jsonl:1: \"tokens\" is not an array");
}
END_TEST

/* The page must load without a message on the console, and soon; `loaded` sees to both. */
START_TEST(chromium_draws_numbers_of_any_size_and_count) {
    if (!chromium()) return;
    ck_assert_int_eq(shell("mkdir -p %s/range %s/close %s/long", directory, directory, directory),
                     0);
    write_text("range/log.jsonl",
               "{\"step\": 1, \"loss\": 1e308, \"toString\": 1}\n"
               "{\"step\": 2, \"loss\": -1e308}\n");
    write_text("close/log.jsonl",
               "{\"step\": 1, \"loss\": 0.6931471805599453}\n"
               "{\"step\": 2, \"loss\": 0.6931471805599454}\n");
    FILE *f = fopen(at("long/log.jsonl"), "w");
    for (int i = 0; i < 70000; i++)
        fprintf(f, "{\"step\": %d, \"loss\": 1.5, \"eval_loss\": 2}\n", i);
    ck_assert(!fclose(f));
    const char *const runs[] = {"range", "close", "long"};
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(page(runs[i]), 0);
        char *dom = loaded(runs[i], "");
        ck_assert(strstr(dom, "<figure>") && strstr(dom, "class=\"legend\""));
        ck_assert(strstr(dom, "aria-hidden=\"true\"") && !strstr(dom, "NaN"));
        free(dom);
    }
}
END_TEST

START_TEST(chromium_makes_few_elements_of_ten_thousand_answers) {
    if (!chromium()) return;
    ck_assert_int_eq(shell("mkdir -p %s/many", directory), 0);
    FILE *f = fopen(at("many/rollouts.jsonl"), "w");
    for (int i = 0; i < 10000; i++) fprintf(f, "%s\n", ROLLOUT("\xED\x95\x9C word"));
    ck_assert(!fclose(f));
    ck_assert_int_eq(page("many"), 0);
    char *dom = loaded("many", "");
    ck_assert(strstr(dom, "10,000 answers") != NULL);
    const int articles = count(dom, "<article");
    ck_assert(articles > 3 && articles < 60);
    free(dom);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {
        token_losses_add_up_to_the_logged_loss,
        values_of_pairs_end_in_the_logged_rewards,
        rollouts_have_texts_ratios_and_held_out_answers,
        dialogues_are_dumped_before_and_after,
        labels_have_both_orders,
        the_page_of_each_program_holds_its_dump,
        its_index_has_the_sums_of_the_dump,
        several_runs_are_in_one_page,
        a_hostile_dump_is_harmless_and_its_bad_lines_are_named,
        what_cannot_be_shown_is_refused,
        the_functions_that_it_names_exist,
        chromium_shows_each_page,
        chromium_obeys_keys_and_shows_the_numbers_of_the_dump,
        chromium_shows_hostile_text_as_text,
        an_answer_of_a_pair_without_tokens_is_left_out,
        chromium_draws_numbers_of_any_size_and_count,
        chromium_makes_few_elements_of_ten_thousand_answers,
        a_dump_without_held_out_records_is_refused,
        a_resumed_run_completes_the_same_dump,
    };
    int failed = run_tests("page", make_runs, tests, COUNT(tests));
    shell("rm -rf %s", directory);
    return failed != 0;
}
