/*
 * run.c - flags, learning-rate schedule, log, progress line, checkpoints, resume. See run.h for
 * what each promises.
 *
 * Order: the state behind a Run; flags; signals; schedule; log and progress; directories;
 * checkpoints; resume; start and finish. Left out on purpose: configuration files (a shell script
 * of flags is one), schedules nobody here uses, metrics services (log.jsonl is what they read), and
 * two processes sharing one OUTPUT.
 */
#define _GNU_SOURCE  // defines: nftw

#include "run/run.h"

#include "text/template.h"
#include "text/utf8.h"

#include "model/kernels.h"  // defines: device_init (the machine is checked before anything else is done)

#include <ctype.h>
#include <ftw.h>
#include <limits.h>

#define STATE_FILE "state.safetensors"
#define STATE_VERSION "1"
#define LINE_WIDTH 110  // of --help and the echo

typedef struct {
    const char *name;
    double *value;
} Kept;

typedef struct {
    const char *name;
    char *text;  // size and hash
} Fingerprint;

/* A second model of the run, in its own directory of every checkpoint. */
typedef struct {
    const char *name;
    GPT2 *m;
    char *from;  // whose config.json and tokenizer go with it
} Also;

struct RunState {
    const char *program;
    Flag *flags;  // Run's own rows, then the stage's; ends with {0}
    /* where the model comes from, and where the output goes */
    char *model_dir;  // its config.json and tokenizer go into every model directory that is written
    char *checkpoint;  // resumed from, or NULL
    bool goes_on;      // the checkpoint lies in OUTPUT: its log is continued
    bool begun;        // OUTPUT has been written to
    FILE *log;
    /* time */
    bool terminal;
    int shown;       // columns of the progress line on the screen
    double started;  // the first step began
    double first_ended, step_began, step_ended, redrawn;
    int first_step;  // run->step after it
    double trained;  // seconds spent in steps, without the first: evaluations and checkpoints are
                     // not steps
    long tokens;     // of those steps
    double logged_trained;  // trained and tokens at the last line of the log
    long logged_tokens;
    /* the order of the examples in one epoch */
    int *order, order_epoch;
    /* what a checkpoint remembers beside flags and moments */
    Kept *kept;
    int kept_n;
    Fingerprint *fingerprint;
    int fingerprint_n;
    Also *also;
    int also_n;
    RunSaver *save;  // in place of hf_save, or NULL
    const char *loading;
    char *template;  // of the model that is made, or NULL: that of model_dir, which goes with its
                     // tokenizer
    int saved_step;  // of the last checkpoint written or read
};

static struct RunState *state_of(Run *run) {
    if (!run->state) {
        run->state = xcalloc(1, sizeof *run->state);
        run->state->program = "run";
        run->state->order_epoch = -1;
        run->state->terminal = isatty(STDOUT_FILENO);
    }
    return run->state;
}

void run_free(Run *run) {
    struct RunState *s = run->state;
    if (!s) return;
    if (s->log) fclose(s->log);
    for (int i = 0; i < s->fingerprint_n; i++) free(s->fingerprint[i].text);
    for (int i = 0; i < s->also_n; i++) free(s->also[i].from);
    free(s->also);
    free(s->flags);
    free(s->model_dir);
    free(s->checkpoint);
    free(s->order);
    free(s->kept);
    free(s->fingerprint);
    free(s->template);
    free(s);
    run->state = NULL;
}

static bool writes(const Run *run) { return run->output && *run->output && !run->dry_run; }

/* DIR/NAME, to be freed */
static char *join(const char *dir, const char *name) {
    Str path = {0};
    str_printf(&path, "%s/%s", dir, name);
    return path.s;
}

/* ---- Numbers as text ------------------------------------------------------------------------- */

/* The shortest decimal that reads back as the same float (or double, where x is not a float's
 * value). */
static const char *number_text(double x, char text[64]) {
    bool is_float = (double)(float)x == x;
    if (x == floor(x) && fabs(x) < 1e15) {
        snprintf(text, 64, "%.0f", x);
        return text;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, 64, "%.*g", digits, x);
        if (is_float ? strtof(text, NULL) == (float)x : strtod(text, NULL) == x) break;
    }
    return text;
}

/* A float flag as the double its user wrote: 0.1f is 0.100000001..., and ceil(0.1f * 30) is 4 where
 * Python's is 3. */
static double as_written(float x) {
    char text[64];
    return strtod(number_text(x, text), NULL);
}

/* ---- Flags ----------------------------------------------------------------------------------- */

Run run_defaults(void) {
    return (Run){
        .num_train_epochs = 3,
        .learning_rate = 5e-5f,
        .weight_decay = 0.01f,
        .max_grad_norm = 1,
        .adam_beta1 = 0.9f,
        .adam_beta2 = 0.999f,
        .adam_epsilon = 1e-8f,
        .per_device_train_batch_size = 4,
        .gradient_accumulation_steps = 2,
        .max_steps = -1,
        .warmup_steps = 100,
        .lr_scheduler_type = "linear",
        .logging_steps = 10,
        .save_steps = 500,
        .save_total_limit = 2,
        .seed = 42,
    };
}

/* Is name one of the words of list? */
static bool listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = list; p && (p = strstr(p, name)); p += n)
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || !p[n])) return true;
    return false;
}

static int count_flags(const Flag *flags) {
    int n = 0;
    while (flags && flags[n].name) n++;
    return n;
}

/* One table of what every run has and what this stage adds. */
static void build_table(Run *run, const Flag *own) {
    const Flag common[] = {
        {"", FLAG_TITLE, NULL, .help = "Files"},
        {"model", FLAG_STRING, &run->model, .help = "directory of the model to start from",
         .free_on_resume = true},
        {"data", FLAG_STRING, &run->data, .help = "training records, JSONL",
         .free_on_resume = true},
        {"eval", FLAG_STRING, &run->eval, .help = "records for evaluation, JSONL",
         .free_on_resume = true},
        {"output", FLAG_STRING, &run->output,
         .help = "directory for log.jsonl, checkpoint-N/ and the finished model; without it "
                 "nothing is written",
         .free_on_resume = true},
        {"overwrite_output_dir", FLAG_BOOL, &run->overwrite_output_dir,
         .help = "start anew in an output that is not empty; the checkpoints in it go",
         .free_on_resume = true},
        {"resume", FLAG_STRING, &run->resume,
         .help =
             "go on from this checkpoint; alone or as \"latest\": from the newest in the output",
         .free_on_resume = true, .bare = "latest"},
        {"dry_run", FLAG_BOOL, &run->dry_run,
         .help = "show memory, counts and the first examples, write nothing",
         .free_on_resume = true},
        {"", FLAG_TITLE, NULL, .help = "Training"},
        {"per_device_train_batch_size", FLAG_INT, &run->per_device_train_batch_size,
         .help = "examples that go through the model together", .low = 1, .high = 65536},
        {"gradient_accumulation_steps", FLAG_INT, &run->gradient_accumulation_steps,
         .help = "such batches in one optimiser step", .low = 1, .high = 65536},
        {"num_train_epochs", FLAG_FLOAT, &run->num_train_epochs,
         .help = "times through the data, may be a fraction", .high = 1e6},
        {"max_steps", FLAG_INT, &run->max_steps,
         .help = "optimiser steps instead of epochs; 0: evaluate only; -1: epochs count", .low = -1,
         .high = 1e9},
        {"dataloader_drop_last", FLAG_BOOL, &run->dataloader_drop_last,
         .help = "leave out an epoch's examples that fill no whole batch"},
        {"learning_rate", FLAG_FLOAT, &run->learning_rate, .help = "the highest of the schedule",
         .high = 10},
        {"lr_scheduler_type", FLAG_CHOICE, &run->lr_scheduler_type,
         .help = "constant|constant_with_warmup|linear|cosine: how the learning rate goes on; "
                 "linear and cosine end at 0"},
        {"warmup_steps", FLAG_INT, &run->warmup_steps,
         .help = "optimiser steps in which the rate rises from 0", .high = 1e9},
        {"warmup_ratio", FLAG_FLOAT, &run->warmup_ratio,
         .help = "the same as a share of all steps, when above 0", .high = 1},
        {"weight_decay", FLAG_FLOAT, &run->weight_decay, .help = "AdamW's, on matrices only",
         .high = 10},
        {"max_grad_norm", FLAG_FLOAT, &run->max_grad_norm,
         .help = "the gradient is clipped to this norm; 0: never", .high = INFINITY},
        {"adam_beta1", FLAG_FLOAT, &run->adam_beta1, .help = "decay of the first moment per step",
         .high = 0.999999},
        {"adam_beta2", FLAG_FLOAT, &run->adam_beta2, .help = "decay of the second moment per step",
         .high = 0.999999},
        {"adam_epsilon", FLAG_FLOAT, &run->adam_epsilon,
         .help = "added to the root of the second moment", .low = 1e-20, .high = 1},
        {"seed", FLAG_LONG, &run->seed, .help = "what every random number follows from",
         .high = INFINITY},
        {"", FLAG_TITLE, NULL, .help = "Log and checkpoints"},
        {"logging_steps", FLAG_INT, &run->logging_steps,
         .help = "steps from one line of the log to the next; 0: only the last", .high = 1e9,
         .free_on_resume = true},
        {"eval_steps", FLAG_INT, &run->eval_steps,
         .help = "steps from one evaluation to the next; 0: once an epoch", .high = 1e9,
         .free_on_resume = true},
        {"save_steps", FLAG_INT, &run->save_steps,
         .help = "steps from one checkpoint to the next; 0: only at the end", .high = 1e9,
         .free_on_resume = true},
        {"save_total_limit", FLAG_INT, &run->save_total_limit,
         .help = "checkpoints that are kept; 0: all", .high = 1e9, .free_on_resume = true},
    };
    const int common_n = (int)(sizeof common / sizeof *common), own_n = count_flags(own);
    struct RunState *s = state_of(run);
    free(s->flags);
    s->flags = xcalloc((size_t)(common_n + own_n) + 2, sizeof *s->flags);
    int n = 0;
    for (int i = 0; i < common_n; i++)
        if (!*common[i].name || !listed(run->without, common[i].name)) s->flags[n++] = common[i];
    if (own_n && own[0].type != FLAG_TITLE)
        s->flags[n++] = (Flag){"", FLAG_TITLE, NULL, .help = "This technique"};
    for (int i = 0; i < own_n; i++) s->flags[n++] = own[i];
}

/* The value a flag holds, as the command line would spell it; NULL for a string that is not set. */
static const char *value_text(const Flag *f, char text[64]) {
    switch (f->type) {
        case FLAG_BOOL: return *(bool *)f->value ? "true" : "false";
        case FLAG_INT: return snprintf(text, 64, "%d", *(int *)f->value), text;
        case FLAG_LONG: return snprintf(text, 64, "%lld", (long long)*(int64_t *)f->value), text;
        case FLAG_FLOAT: return number_text(*(float *)f->value, text);
        default: return *(const char **)f->value;
    }
}

/* What a flag takes, for messages: "a whole number from 1 to 8". */
static const char *takes_text(const Flag *f, char text[256]) {
    if (f->type == FLAG_BOOL) return "true or false";
    if (f->type == FLAG_STRING) return f->free_on_resume ? "a text" : "a text in UTF-8";
    if (f->type == FLAG_CHOICE)
        return snprintf(text, 256, "one of %.*s", (int)strcspn(f->help, ":"), f->help), text;
    const char *kind = f->type == FLAG_FLOAT ? "a number" : "a whole number";
    if (f->low == 0 && f->high == 0)
        snprintf(text, 256, "%s", kind);
    else if (isinf(f->high))
        snprintf(text, 256, "%s, %.10g or more", kind, f->low);
    else
        snprintf(text, 256, "%s from %.10g to %.10g", kind, f->low, f->high);
    return text;
}

static bool outside(const Flag *f, double x) {
    return (f->low != 0 || f->high != 0) && !(x >= f->low && x <= f->high);
}

/* Strictly a decimal number: strtol and strtod also take blanks, "nan", "inf" and hexadecimal. */
static bool spelled_with(const char *text, const char *characters) {
    return *text && strspn(text, characters) == strlen(text);
}

static bool read_whole(const char *text, long long *value) {
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return spelled_with(text, "+-0123456789") && !*end && !errno;
}

static bool read_number(const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    return spelled_with(text, "+-.eE0123456789") && !*end && isfinite(*value);
}

static bool is_choice(const char *help, const char *text) {
    size_t n = strlen(text), length;
    for (const char *p = help;; p += length + 1) {
        length = strcspn(p, "|:");
        if (n && length == n && !memcmp(p, text, n)) return true;
        if (p[length] != '|') return false;
    }
}

/* Gives a flag the value that text spells. */
static int set_flag(const Flag *f, const char *text, Error *e) {
    char takes[256];
    long long whole = 0;
    double number = 0;
    bool understood = true, fits = true;
    switch (f->type) {
        case FLAG_BOOL:
            if (!strcasecmp(text, "true"))
                *(bool *)f->value = true;
            else if (!strcasecmp(text, "false"))
                *(bool *)f->value = false;
            else
                understood = false;
            break;
        case FLAG_INT:
        case FLAG_LONG:
            understood = read_whole(text, &whole);
            fits = !outside(f, (double)whole) &&
                   (f->type == FLAG_LONG || (whole >= INT_MIN && whole <= INT_MAX));
            if (!understood || !fits) break;
            if (f->type == FLAG_INT)
                *(int *)f->value = (int)whole;
            else
                *(int64_t *)f->value = whole;
            break;
        case FLAG_FLOAT:
            understood = read_number(text, &number);
            fits = !outside(f, number) && isfinite((float)number) &&
                   (number == 0 || (float)number != 0);
            if (understood && fits) *(float *)f->value = (float)number;
            break;
        default:
            understood = f->type == FLAG_CHOICE
                             ? is_choice(f->help, text)
                             : f->free_on_resume || utf8_valid(text, strlen(text));
            if (understood) *(const char **)f->value = text;
    }
    if (!understood || !fits)
        return fail(e, "--%s \"%s\" %s; it takes %s", f->name, text,
                    understood ? "is out of range" : "is not understood", takes_text(f, takes));
    return 0;
}

#define NAME_MAX_LENGTH 63

/* How many letters must be changed, added or taken away to turn a into b (Levenshtein 1966). */
static int edit_distance(const char *a, const char *b) {
    int row[NAME_MAX_LENGTH + 1], la = (int)strlen(a), lb = (int)strlen(b);
    for (int j = 0; j <= lb; j++) row[j] = j;
    for (int i = 1; i <= la; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int add = row[j - 1] + 1, take = row[j] + 1;
            row[j] = change < add ? change : add;
            if (take < row[j]) row[j] = take;
        }
    }
    return row[lb];
}

/* The flag that was probably meant, or NULL. A name that contains the other (--output_dir,
 * --batch_size) is near too. */
static const Flag *nearest_flag(const Flag *flags, const char *name) {
    const Flag *nearest = NULL;
    int least = (int)strlen(name) / 2 > 3 ? (int)strlen(name) / 2 : 3;
    for (const Flag *f = flags; f->name; f++) {
        if (f->type == FLAG_TITLE || strlen(f->name) > NAME_MAX_LENGTH) continue;
        int distance = edit_distance(name, f->name);
        if (distance > 3 && (strstr(name, f->name) || strstr(f->name, name))) distance = 3;
        if (distance < least || (distance == least && !nearest)) {
            least = distance;
            nearest = f;
        }
    }
    return nearest;
}

static const Flag *find_flag(const Flag *flags, const char *name) {
    for (const Flag *f = flags; f->name; f++)
        if (f->type != FLAG_TITLE && !strcmp(f->name, name)) return f;
    return NULL;
}

/* "--Name-of-it=value": writes name_of_it into name, returns the value or NULL. Longer names are
 * cut: there are none. */
static const char *split_flag(const char *argument, char name[NAME_MAX_LENGTH + 1]) {
    const char *p = argument + 2;
    size_t length = strcspn(p, "="), n = length < NAME_MAX_LENGTH ? length : NAME_MAX_LENGTH;
    for (size_t i = 0; i < n; i++) name[i] = p[i] == '-' ? '_' : p[i];
    name[n] = 0;
    return p[length] ? p + length + 1 : NULL;
}

/* Is argv[i + 1] there, and a value rather than the next flag? */
static bool value_follows(const Flag *f, int argc, char **argv, int i) {
    if (i + 1 >= argc) return false;
    const char *next = argv[i + 1];
    if (f->type == FLAG_BOOL) return !strcasecmp(next, "true") || !strcasecmp(next, "false");
    return strncmp(next, "--", 2) != 0;
}

const char *run_example_file(const char *name) {
    char program[4096], *dir = program;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    Str path = {0};
    for (int up = 0; up < 3;
         up++) {  // ./sft stands beside test/, the Makefile's own builds two directories below
        dir = dirname(dir);
        path.n = 0;
        str_printf(&path, "%s/test/%s", dir, name);
        if (access(path.s, F_OK) == 0) break;
    }
    static char *kept[32];  // each path once, for whoever looks for memory that nobody points at
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        if (!kept[i]) return kept[i] = path.s;
        if (strcmp(kept[i], path.s)) continue;
        free(path.s);
        return kept[i];
    }
    return path.s;
}

int run_parse(Run *run, const char *program, const Flag *own, int argc, char **argv, Error *e) {
    build_table(run, own);
    struct RunState *s = run->state;
    s->program = program;
    bool ratio_given = false, steps_given = false;
    for (int i = 1; i < argc; i++) {
        char name[NAME_MAX_LENGTH + 1], takes[256];
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return 1;
        if (strncmp(argv[i], "--", 2) != 0 || !argv[i][2])
            return fail(e, "\"%s\" belongs to no flag; every setting is --name value", argv[i]);
        const char *value = split_flag(argv[i], name);
        const Flag *f = find_flag(s->flags, name);
        if (!f && !strncmp(name, "no_", 3) && !value) {
            f = find_flag(s->flags, name + 3);
            if (f && f->type == FLAG_BOOL)
                value = "false";
            else
                f = NULL;
        }
        if (!f) {
            const Flag *nearest = nearest_flag(s->flags, name);
            return fail(e, "there is no flag %s%s%s%s", argv[i], nearest ? "; did you mean --" : "",
                        nearest ? nearest->name : "", nearest ? "?" : "");
        }
        if (!value && value_follows(f, argc, argv, i)) value = argv[++i];
        if (!value) value = f->type == FLAG_BOOL ? "true" : f->bare;
        if (!value)
            return fail(e, "--%s is given no value; it takes %s", f->name, takes_text(f, takes));
        if (set_flag(f, value, e)) return -1;
        s->flags[f - s->flags].given = f->type == FLAG_BOOL ? *(bool *)f->value : *value != 0;
        ratio_given |= f->value == &run->warmup_ratio;
        steps_given |= f->value == &run->warmup_steps;
    }
    for (const Flag *a = s->flags; a->name; a++)
        for (const Flag *b = s->flags; a->given && a->apart && b->name; b++)
            if (b->given && listed(a->apart, b->name))
                return fail(e, "--%s and --%s are both given; give one of them", a->name, b->name);
    if (ratio_given && steps_given && run->warmup_ratio > 0 && run->warmup_steps > 0)
        return fail(e, "--warmup_steps %d and --warmup_ratio %g are both given; give one of them",
                    run->warmup_steps, (double)run->warmup_ratio);
    if (steps_given && !ratio_given) run->warmup_ratio = 0;
    if (run->warmup_ratio > 0) run->warmup_steps = 0;
    return 0;
}

/* Prints text from column `column` (where the cursor is) to LINE_WIDTH, breaking at blanks. */
static void print_wrapped(const char *text, int column) {
    int at = column;
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (at > column && at + 1 + word > LINE_WIDTH) {
            printf("\n%*s", column, "");
            at = column;
        } else if (at > column) {
            putchar(' ');
            at++;
        }
        printf("%.*s", word, text);
        at += word;
        text += word;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_help(const Run *run, const char *about) {
    printf("usage: %s [--name value ...]\n\n%s\n", run->state->program, about);
    for (const Flag *f = run->state->flags; f->name; f++) {
        char text[64];
        if (f->type == FLAG_TITLE) {
            printf("\n%s\n", f->help);
            continue;
        }
        const char *value = value_text(f, text);
        int column = printf("  --%-28s %-12s ", f->name, value && *value ? value : "-");
        if (column > LINE_WIDTH / 2)
            column = printf("\n%46s", "") - 1;  // a long default has a line of its own
        print_wrapped(f->help, column);
    }
    printf(
        "\nThe second column is the default. --name value and --name=value are alike, so are - and "
        "_;\n"
        "--no_name turns a switch off; of a flag given twice the last counts.\n");
}

/* Appends text as a shell reads it back. */
static void add_quoted(Str *line, const char *text) {
    bool plain = *text != 0;
    for (const char *p = text; *p; p++)
        plain &= isalnum((unsigned char)*p) || strchr("_-+./:,@%=", *p);
    if (plain) {
        str_add(line, text, strlen(text));
        return;
    }
    str_add(line, "'", 1);
    for (const char *p = text; *p; p++) str_add(line, *p == '\'' ? "'\\''" : p, *p == '\'' ? 4 : 1);
    str_add(line, "'", 1);
}

void run_echo(const Run *run) {
    int at = 0;
    for (const Flag *f = run->state->flags; f->name; f++) {
        char text[64];
        const char *value = f->type == FLAG_TITLE ? NULL : value_text(f, text);
        if (!value) continue;
        Str word = {0};
        if (f->type == FLAG_BOOL) {
            str_printf(&word, "--%s%s", *(bool *)f->value ? "" : "no_", f->name);
        } else {
            str_printf(&word, "--%s=", f->name);
            add_quoted(&word, value);
        }
        if (at && at + 1 + (int)word.n > LINE_WIDTH) {
            at = 0;
            printf(" \\\n");
        }
        at += printf("%s%s", at ? " " : "  ", word.s);
        free(word.s);
    }
    printf("\n");
    fflush(stdout);
}

/* ---- Signals --------------------------------------------------------------------------------- */

/* The first asks the run to save and stop, which it does between two steps; the second ends it. */

static volatile sig_atomic_t interrupted;  // the signal's number

static void on_signal(int number) {
    static const char note[] = "\nwill save and stop after this step; once more stops at once\n";
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    interrupted = number;
    if (write(STDERR_FILENO, note, sizeof note - 1) < 0)
        return;  // nobody to tell: it stops all the same
}

static void catch_signal(int number) {
    struct sigaction old, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (!sigaction(number, NULL, &old) && old.sa_handler == SIG_IGN)
        return;  // started with nohup or in the background
    sigaction(number, &action, NULL);
}

bool run_interrupted(void) { return interrupted != 0; }

/* ---- Schedule -------------------------------------------------------------------------------- */

void run_plan_steps(Run *run, int examples) {
    const int batch = run->per_device_train_batch_size;
    const int64_t per_step = (int64_t)batch * run->gradient_accumulation_steps;
    const int used = run->dataloader_drop_last ? examples - examples % batch : examples;
    run->examples = examples;
    run->steps_per_epoch = (int)((used + per_step - 1) / per_step);
    state_of(run);
    if (run->max_steps != 0 && !examples)
        die_usage(
            "there is no example to train on; see what the data holds, or use --max_steps 0 to "
            "evaluate only");
    if (run->max_steps != 0 && !used)
        die_usage(
            "%d examples fill no batch of %d, and --dataloader_drop_last leaves them out; use "
            "smaller batches",
            examples, batch);
    const double steps = run->max_steps >= 0
                             ? run->max_steps
                             : ceil(as_written(run->num_train_epochs) * run->steps_per_epoch);
    if (steps > INT_MAX)
        die_usage("--num_train_epochs %g of %d steps each are more steps than can be counted",
                  (double)run->num_train_epochs, run->steps_per_epoch);
    run->total_steps = (int)steps;
}

static double warmup_length(const Run *run) {
    if (!strcmp(run->lr_scheduler_type, "constant")) return 0;
    return run->warmup_ratio > 0 ? ceil(run->total_steps * as_written(run->warmup_ratio))
                                 : run->warmup_steps;
}

float run_learning_rate(const Run *run, int step) {
    const double warmup = warmup_length(run), rest = fmax(1, run->total_steps - warmup);
    double factor = 1;
    if (step < warmup)
        factor = step / warmup;
    else if (!strcmp(run->lr_scheduler_type, "linear"))
        factor = fmax(0, (run->total_steps - step) / rest);
    else if (!strcmp(run->lr_scheduler_type, "cosine"))
        factor = fmax(0, 0.5 * (1 + cos(M_PI * ((step - warmup) / rest))));
    return (float)(as_written(run->learning_rate) * factor);
}

AdamW run_adamw(const Run *run, int step) {
    return (AdamW){run_learning_rate(run, step),
                   run->adam_beta1,
                   run->adam_beta2,
                   run->adam_epsilon,
                   run->weight_decay,
                   run->max_grad_norm};
}

int run_dropout(GPT2Noise *noise, const GPT2Config *config, const char *text, Error *e) {
    if (!strcmp(text, "config")) {
        noise->embd_pdrop = config->embd_pdrop;
        noise->attn_pdrop = config->attn_pdrop;
        noise->resid_pdrop = config->resid_pdrop;
        return 0;
    }
    double p;
    if (!read_number(text, &p) || !(p >= 0 && p < 1))
        return fail(e,
                    "takes a probability from 0 to below 1, or no value for those of config.json");
    noise->embd_pdrop = noise->attn_pdrop = noise->resid_pdrop = (float)p;
    return 0;
}

int run_examples(const Run *run, int step, int *which) {
    struct RunState *s = run->state;
    const int batch = run->per_device_train_batch_size, epoch = step / run->steps_per_epoch;
    const int64_t per_step = (int64_t)batch * run->gradient_accumulation_steps;
    const int used =
        run->dataloader_drop_last ? run->examples - run->examples % batch : run->examples;
    if (epoch != s->order_epoch) {
        s->order = xrealloc(s->order, (size_t)run->examples, sizeof *s->order);
        random_permutation(s->order, run->examples, (uint64_t)run->seed, RANDOM_SHUFFLE,
                           (uint32_t)epoch);
        s->order_epoch = epoch;
    }
    const int64_t first = step % run->steps_per_epoch * per_step,
                  end = first + per_step < used ? first + per_step : used;
    memcpy(which, s->order + first, (size_t)(end - first) * sizeof *which);
    if (!s->step_began) s->step_began = now_seconds();
    if (!s->started) s->started = s->step_began;
    return (int)(end - first);
}

double run_epoch(const Run *run) {
    return run->steps_per_epoch ? (double)run->step / run->steps_per_epoch : 0;
}

static bool is_time(const Run *run, int every) {
    return run->step == run->total_steps || (every > 0 && run->step % every == 0);
}

bool run_should_log(const Run *run) { return is_time(run, run->logging_steps); }

bool run_should_evaluate(const Run *run) {
    return is_time(run, run->eval_steps > 0 ? run->eval_steps : run->steps_per_epoch);
}

bool run_should_save(const Run *run) {
    return writes(run) && (is_time(run, run->save_steps) || run_interrupted());
}

/* ---- Directories ----------------------------------------------------------------------------- */

/* 0, or -1 with errno, like mkdir -p. */
static int make_directories(const char *path) {
    char *copy = xstrdup(path);
    int status = 0;
    for (char *p = copy + 1; !status; p++) {
        if (*p && *p != '/') continue;
        const char end = *p;
        *p = 0;
        if (mkdir(copy, 0777) && errno != EEXIST) status = -1;
        *p = end;
        if (!end) break;
    }
    free(copy);
    struct stat found;
    if (!status && !stat(path, &found) && !S_ISDIR(found.st_mode)) {
        status = -1;
        errno = ENOTDIR;
    }
    return status;
}

static int remove_entry(const char *path, const struct stat *found, int type, struct FTW *where) {
    (void)found;
    (void)type;
    (void)where;
    return remove(path);
}

/* Removes a directory and what it holds; links are removed, not followed. */
static int remove_tree(const char *path) {
    return nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static bool same_directory(const char *a, const char *b) {
    struct stat x, y;
    return a && b && !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool exists_in(const char *dir, const char *name) {
    char *path = join(dir, name);
    bool yes = !access(path, F_OK);
    free(path);
    return yes;
}

/* Reads 1 to 9 digits; -1 when there is anything else. */
static long digits(const char *text, size_t n) {
    if (n < 1 || n > 9 || strspn(text, "0123456789") < n) return -1;
    return strtol(text, NULL, 10);
}

/* N of a name that is exactly checkpoint-N, or -1. */
static long checkpoint_number(const char *name) {
    return strncmp(name, "checkpoint-", 11) ? -1 : digits(name + 11, strlen(name + 11));
}

static int is_checkpoint(const struct dirent *d) { return checkpoint_number(d->d_name) >= 0; }

static int is_unfinished(const struct dirent *d) { return newfile_writer(d->d_name, ".tmp-") >= 0; }

static int is_replaced(const struct dirent *d) {
    return !strncmp(d->d_name, "checkpoint-", 11) && newfile_writer(d->d_name, ".old-") >= 0;
}

/* Anything in an output that a new run would lose: all but a log and what no writer finished. */
static int is_content(const struct dirent *d) {
    return strcmp(d->d_name, ".") && strcmp(d->d_name, "..") && strcmp(d->d_name, "log.jsonl") &&
           !is_unfinished(d);
}

/* For a scandir of checkpoints: 9 before 10. */
static int by_number(const struct dirent **a, const struct dirent **b) {
    long x = checkpoint_number((*a)->d_name), y = checkpoint_number((*b)->d_name);
    return (x > y) - (x < y);
}

/* A scandir whose directory may be absent; one that cannot be read is not taken for an empty one.
 * Released with free_list. */
static int list_directory(const char *dir, int (*wanted)(const struct dirent *),
                          struct dirent ***list) {
    int n = scandir(dir, list, wanted, by_number);
    if (n >= 0) return n;
    if (errno != ENOENT && errno != ENOTDIR)
        die("cannot list %s: %s; nothing in it has been changed", dir, strerror(errno));
    *list = NULL;
    return 0;
}

static void free_list(struct dirent **list, int n) {
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
}

/* This process has begun nothing yet, so its own number is an earlier one's (in a container every
 * run may be process 1). */
static bool is_gone(long writer) {
    return writer == getpid() || (kill((pid_t)writer, 0) && errno == ESRCH);
}

/* Clears up after runs that were killed between the two renames of put_in_place, or before what was
   replaced was removed: checkpoint-N.old-PID/ is checkpoint-N again, unless there is a newer one.
 */
static void finish_replacing(const Run *run) {
    struct dirent **list;
    int n = list_directory(run->output, is_replaced, &list);
    for (int i = 0; i < n; i++) {
        char *old = join(run->output, list[i]->d_name), *place = xstrdup(old);
        *strrchr(place, '.') = 0;
        const bool ours = exists_in(old, STATE_FILE) && !same_directory(old, run_model_dir(run));
        if (ours && is_gone(newfile_writer(old, ".old-")) &&
            (access(place, F_OK) ? rename(old, place) : remove_tree(old)))
            fprintf(stderr, "note: cannot clear up %s: %s\n", old, strerror(errno));
        free(old);
        free(place);
    }
    free_list(list, n);
}

/* Removes what runs that are no longer alive left unfinished: checkpoint-N.tmp-PID/ and
 * FILE.tmp-PID. */
static void remove_unfinished(const char *output) {
    struct dirent **list;
    int n = list_directory(output, is_unfinished, &list);
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        const long writer = newfile_writer(name, ".tmp-");
        struct stat found;
        char *path = join(output, name);
        if (is_gone(writer) && !lstat(path, &found)) {
            if (S_ISREG(found.st_mode)) unlink(path);
            if (S_ISDIR(found.st_mode) && !strncmp(name, "checkpoint-", 11)) remove_tree(path);
        }
        free(path);
    }
    free_list(list, n);
}

/* Removes one of our checkpoints, never the directory that the model came from. Renamed first: half
   of one must not look whole. */
static void remove_checkpoint(const struct RunState *s, const char *path) {
    if (!exists_in(path, STATE_FILE) || same_directory(path, s->model_dir)) return;
    Str aside = {0};
    str_printf(&aside, "%s.tmp-%ld", path, (long)getpid());
    if (rename(path, aside.s) || remove_tree(aside.s))
        fprintf(stderr, "note: cannot remove %s: %s\n", path, strerror(errno));
    free(aside.s);
}

/* All but the newest `keep` that are older than checkpoint-`newest`, which counts as one of them.
 */
static void rotate_checkpoints(const Run *run, int newest, int keep) {
    struct dirent **list;
    int n = list_directory(run->output, is_checkpoint, &list), older = 0;
    for (int i = n - 1; i >= 0; i--) {
        char *path = join(run->output, list[i]->d_name);
        if (checkpoint_number(list[i]->d_name) < newest && exists_in(path, STATE_FILE) &&
            ++older >= keep)
            remove_checkpoint(run->state, path);
        free(path);
    }
    free_list(list, n);
}

/* ---- Log and progress ------------------------------------------------------------------------ */

/* Before the first thing is written, and not earlier: a run that ends over a misspelled file name
 * costs OUTPUT nothing. */
static void begin_writing(Run *run) {
    struct RunState *s = state_of(run);
    if (s->begun || !writes(run)) return;
    s->begun = true;
    if (!s->goes_on) rotate_checkpoints(run, INT_MAX, 1);
    char *path = join(run->output, "log.jsonl");
    if (make_directories(run->output) || !(s->log = fopen(path, s->goes_on ? "ab" : "wb")))
        die("cannot write %s: %s; choose an --output that is yours to write", path,
            strerror(errno));
    free(path);
}

static void clear_progress(struct RunState *s) {
    if (s->shown) printf("\r%*s\r", s->shown, "");
    s->shown = 0;
}

static void write_log_line(Run *run, const Metric *metrics) {
    Str line = {0};
    char text[64];
    str_printf(&line, "{\"step\": %d", run->step);
    for (const Metric *m = metrics; m->name; m++)
        str_printf(&line, ", \"%s\": %s", m->name,
                   isfinite(m->value) ? number_text(m->value, text) : "null");
    str_add(&line, "}\n", 2);
    FILE *f = run->state->log;
    if (fwrite(line.s, 1, line.n, f) != line.n || fflush(f))
        die("cannot write %s/log.jsonl: %s; the checkpoints are whole: make room and use --resume",
            run->output, strerror(errno));
    free(line.s);
}

void run_log_metrics(Run *run, const Metric *metrics, int shown) {
    struct RunState *s = state_of(run);
    begin_writing(run);
    if (s->log) write_log_line(run, metrics);
    clear_progress(s);
    printf("step %d/%d", run->step, run->total_steps);
    for (const Metric *m = metrics; m->name && m - metrics < shown; m++)
        printf("  %s %.5g", m->name, m->value);
    if (s->trained > s->logged_trained)
        printf("  %.0f tokens/s",
               (double)(s->tokens - s->logged_tokens) / (s->trained - s->logged_trained));
    if (s->started) printf("  %.1f s", now_seconds() - s->started);
    printf("\n");
    fflush(stdout);
    s->logged_trained = s->trained;
    s->logged_tokens = s->tokens;
}

/* "2 h 05 min", "12 min", "40 s" */
static void print_duration(Str *line, double seconds) {
    const int minutes = (int)fmin(seconds / 60, 1e8);
    if (minutes >= 60)
        str_printf(line, "%d h %02d min", minutes / 60, minutes % 60);
    else if (minutes >= 2)
        str_printf(line, "%d min", minutes);
    else
        str_printf(line, "%.0f s", seconds);
}

static void show_progress(Run *run, double loss, double now) {
    struct RunState *s = run->state;
    Str line = {0};
    str_printf(&line, "step %d/%d  loss %.4f", run->step, run->total_steps, loss);
    if (s->trained > 0) {
        str_printf(&line, "  %.0f tokens/s  ", (double)s->tokens / s->trained);
        print_duration(&line, (now - s->first_ended) / (run->step - s->first_step) *
                                  (run->total_steps - run->step));
        str_printf(&line, " left");
    }
    clear_progress(s);
    printf("%s", line.s);
    fflush(stdout);
    s->shown = (int)line.n;
    s->redrawn = now;
    free(line.s);
}

void run_progress(Run *run, double loss, long tokens) {
    struct RunState *s = state_of(run);
    const double now = now_seconds();
    if (!s->first_ended) {
        s->first_ended = now;
        s->first_step = run->step;
    } else {
        s->trained += now - (s->step_began ? s->step_began : s->step_ended);
        s->tokens += tokens;
    }
    if (!s->started) s->started = now;
    s->step_began = 0;  // run_examples sets it; a stage that draws its examples itself is timed
                        // from step to step
    s->step_ended = now;
    if (s->terminal && now - s->redrawn > 0.1) show_progress(run, loss, now);
}

const char *with_commas(size_t n, char text[32]) {
    char figures[24];
    int length = snprintf(figures, sizeof figures, "%zu", n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = figures[i];
    }
    text[at] = 0;
    return text;
}

void run_print_parameters(size_t trained, size_t all) {
    char a[32], b[32];
    printf("trainable params: %s || all params: %s || trainable%%: %.4f\n", with_commas(trained, a),
           with_commas(all, b), 100 * (double)trained / (double)all);
}

void run_print_memory(const GPT2Memory *m) {
    const struct {
        const char *name;
        size_t bytes;
    } row[] = {{"weights", m->weights},     {"gradients", m->gradients},
               {"moments", m->moments},     {"activations", m->activations},
               {"logits", m->logits},       {"cache", m->cache},
               {"workspace", m->workspace}, {"total", m->total}};
    printf("memory\n");
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (row[i].bytes)
            printf("  %-12s %10.1f MiB\n", row[i].name, (double)row[i].bytes / (1 << 20));
    fflush(stdout);
}

void run_print_peak_memory(const GPT2Memory *planned) {
    printf("peak memory %.0f MB, planned %.0f MB\n", (double)device_memory_peak() / 1e6,
           (double)planned->total / 1e6);
}

/* ---- Checkpoints ----------------------------------------------------------------------------- */

void run_fingerprint(Run *run, const char *name, const char *path) {
    struct RunState *s = state_of(run);
    Str text = {0};
    if (path) {
        FILE *f = fopen(path, "rb");
        if (!f) die_usage("cannot open %s (--%s): %s", path, name, strerror(errno));
        static unsigned char block[1 << 16];
        uint64_t hash = HASH_START, size = 0;
        for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0; size += n)
            hash = hash_bytes(hash, block, n);
        if (ferror(f)) die_usage("cannot read %s (--%s): %s", path, name, strerror(errno));
        fclose(f);
        str_printf(&text, "%llu bytes, hash %016llx", (unsigned long long)size,
                   (unsigned long long)hash);
    } else {
        str_printf(&text, "no file");
    }
    s->fingerprint = xrealloc(s->fingerprint, (size_t)s->fingerprint_n + 1, sizeof *s->fingerprint);
    s->fingerprint[s->fingerprint_n++] = (Fingerprint){name, text.s};
}

void run_keep(Run *run, const char *name, double *value) {
    struct RunState *s = state_of(run);
    s->kept = xrealloc(s->kept, (size_t)s->kept_n + 1, sizeof *s->kept);
    s->kept[s->kept_n++] = (Kept){name, value};
}

void run_also(Run *run, const char *name, GPT2 *m, const char *from) {
    struct RunState *s = state_of(run);
    s->also = xrealloc(s->also, (size_t)s->also_n + 1, sizeof *s->also);
    s->also[s->also_n++] = (Also){name, m, xstrdup(from)};
}

void run_template(Run *run, const char *template) {
    struct RunState *s = state_of(run);
    free(s->template);
    s->template = template ? template_line(template) : NULL;
}

void run_saver(Run *run, RunSaver *save, const char *loading) {
    struct RunState *s = state_of(run);
    s->save = save;
    s->loading = loading;
}

/* Writes what this run is to produce into dir: the model or the stage's own form of it, and the
 * second models. */
static int save_models(const Run *run, const GPT2 *m, const char *dir, bool others, Error *e) {
    const struct RunState *s = run->state;
    if (s->save ? s->save(m, dir, run->model, e) : hf_save(m, dir, s->model_dir, e)) return -1;
    int status = s->template ? hf_save_template(dir, s->template, e) : 0;
    for (int i = 0; i < s->also_n && others && !status; i++) {
        char *place = join(dir, s->also[i].name);
        status = hf_save(s->also[i].m, place, s->also[i].from, e);
        free(place);
    }
    return status;
}

/* The prefix of a second model's moments in the state. */
static char *moments_of(const Also *a) {
    Str prefix = {0};
    str_printf(&prefix, "%s.", a->name);
    return prefix.s;
}

/* Notes one thing under "kind.name". */
static void note(STWriter *w, const char *kind, const char *name, const char *value) {
    Str key = {0};
    str_printf(&key, "%s.%s", kind, name);
    st_note(w, key.s, value);
    free(key.s);
}

static int write_state(const Run *run, const GPT2 *m, const char *path, Error *e) {
    const struct RunState *s = run->state;
    STWriter *w = st_new();
    char text[64];
    st_note(w, "format_version", STATE_VERSION);
    st_note(w, "program", s->program);
    snprintf(text, sizeof text, "%d", run->step);
    st_note(w, "step", text);
    snprintf(text, sizeof text, "%d", run->examples);
    st_note(w, "examples", text);
    for (const Flag *f = s->flags; f->name; f++) {
        if (f->type == FLAG_TITLE || f->free_on_resume) continue;
        const char *value = value_text(f, text);
        note(w, "flag", f->name, value ? value : "");
    }
    for (int i = 0; i < s->fingerprint_n; i++)
        note(w, "data", s->fingerprint[i].name, s->fingerprint[i].text);
    for (int i = 0; i < s->kept_n; i++) {
        snprintf(text, sizeof text, "%.17g", *s->kept[i].value);
        note(w, "keep", s->kept[i].name, text);
    }
    hf_declare_moments(w, m, "");
    for (int i = 0; i < s->also_n; i++) {
        char *prefix = moments_of(&s->also[i]);
        hf_declare_moments(w, s->also[i].m, prefix);
        free(prefix);
    }
    bool written = !st_begin(w, path, e) && !hf_write_moments(w, m, e);
    for (int i = 0; i < s->also_n; i++) written = written && !hf_write_moments(w, s->also[i].m, e);
    return st_end(w, written, written ? e : NULL) || !written ? -1 : 0;
}

/* Writes the whole checkpoint into dir. */
static int write_checkpoint(const Run *run, const GPT2 *m, const char *dir, Error *e) {
    if (mkdir(dir, 0777)) return fail(e, "cannot make %s: %s", dir, strerror(errno));
    char *state = join(dir, STATE_FILE);
    int status = save_models(run, m, dir, true, e) || write_state(run, m, state, e) ? -1 : 0;
    if (!status) sync_directory_of(state);
    free(state);
    return status;
}

/* Renames aside to path. What stood there goes aside in its turn, and is removed if it is one of
 * our checkpoints. */
static int put_in_place(const char *aside, const char *path, Error *e) {
    Str old = {0};
    str_printf(&old, "%s.old-%ld", path, (long)getpid());
    bool replaces = !rename(path, old.s);
    int status = rename(aside, path)
                     ? fail(e, "cannot rename %s to %s: %s", aside, path, strerror(errno))
                     : 0;
    if (status && replaces && !rename(old.s, path)) replaces = false;
    sync_directory_of(path);
    if (!status && replaces && exists_in(old.s, STATE_FILE))
        remove_tree(old.s);
    else if (replaces)
        fprintf(stderr, "note: what stood at %s is now %s\n", path, old.s);
    free(old.s);
    return status;
}

void run_save(const Run *run, const GPT2 *m, const char *name) {
    if (!writes(run)) return;
    Error e;
    char *dir = join(run->output, name);
    if (save_models(run, m, dir, false, &e)) die("%s", e.text);
    free(dir);
}

void run_checkpoint(Run *run, const GPT2 *m) {
    if (!writes(run)) return;
    struct RunState *s = state_of(run);
    begin_writing(run);
    if (fsync(fileno(s->log))) die("cannot write %s/log.jsonl: %s", run->output, strerror(errno));
    Error e;
    Str path = {0}, aside = {0};
    str_printf(&path, "%s/checkpoint-%d", run->output, run->step);
    str_printf(&aside, "%s.tmp-%ld", path.s, (long)getpid());
    if (write_checkpoint(run, m, aside.s, &e) || put_in_place(aside.s, path.s, &e)) {
        remove_tree(aside.s);
        die("%s is not written: %s; earlier checkpoints are whole: make room and use --resume",
            path.s, e.text);
    }
    s->saved_step = run->step;
    if (s->checkpoint) {  // the one resumed from may now be removed: the new one says as well what
                          // the model is
        free(s->model_dir);
        s->model_dir = xstrdup(path.s);
        for (int i = 0; i < s->also_n; i++) {
            free(s->also[i].from);
            s->also[i].from = join(path.s, s->also[i].name);
        }
    }
    if (run->save_total_limit > 0) rotate_checkpoints(run, run->step, run->save_total_limit);
    clear_progress(s);
    printf("saved %s\n", path.s);
    fflush(stdout);
    free(path.s);
    free(aside.s);
}

/* Is every safetensors file of the checkpoint all there? */
static int check_checkpoint(const char *dir, Error *e) {
    const char *const names[] = {STATE_FILE, "model.safetensors", "adapter_model.safetensors",
                                 "adapter.safetensors"};
    for (int i = 0; i < 4; i++) {
        if (i && !exists_in(dir, names[i]))
            continue;  // a large model may be in shards, which hf_load checks
        char *path = join(dir, names[i]);
        SafeTensors *st = st_open(path, e);
        free(path);
        if (!st) return -1;
        st_close(st);
    }
    return 0;
}

/* The newest whole checkpoint of OUTPUT, to be freed; NULL with e filled. */
static char *newest_checkpoint(const char *output, Error *e) {
    struct dirent **list;
    int n = list_directory(output, is_checkpoint, &list);
    char *found = NULL;
    fail(e, "--resume: there is no checkpoint in %s; leave --resume away to start a run there",
         output);
    for (int i = n - 1; i >= 0 && !found; i--) {
        Error broken;
        char *dir = join(output, list[i]->d_name);
        if (!check_checkpoint(dir, &broken)) {
            found = dir;
        } else {
            fprintf(stderr, "note: %s is not whole and is passed over: %s\n", dir, broken.text);
            fail(e, "--resume: no checkpoint in %s is whole; of the last one tried: %s", output,
                 broken.text);
            free(dir);
        }
    }
    free_list(list, n);
    return found;
}

/* ---- Resume ---------------------------------------------------------------------------------- */

const char *run_checkpoint_dir(const Run *run) {
    return run->state ? run->state->checkpoint : NULL;
}

const char *run_model_dir(const Run *run) {
    return run_checkpoint_dir(run) ? run_checkpoint_dir(run) : run->model;
}

char *run_also_dir(const Run *run, const char *name, const char *otherwise) {
    return run_checkpoint_dir(run) ? join(run_checkpoint_dir(run), name) : xstrdup(otherwise);
}

/* Refuses when what the checkpoint says of one thing is not what holds now. */
static void must_agree(const Run *run, const SafeTensors *st, const char *key, const char *name,
                       const char *now) {
    const char *then = st_metadata(st, key);
    if (then && !strcmp(then, now)) return;
    die_usage(
        "cannot go on from %s: %s is \"%s\" here and %s%s%s there; make them agree, or start anew "
        "in another --output",
        run->state->checkpoint, name, now, then ? "\"" : "", then ? then : "not known",
        then ? "\"" : "");
}

static void must_agree_on(const Run *run, const SafeTensors *st, const char *kind, const char *name,
                          const char *shown, const char *now) {
    Str key = {0}, what = {0};
    str_printf(&key, "%s.%s", kind, name);
    str_printf(&what, "%s%s", shown, name);
    must_agree(run, st, key.s, what.s, now);
    free(key.s);
    free(what.s);
}

static void check_agreement(const Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    char text[64];
    must_agree(run, st, "format_version", "the format of " STATE_FILE, STATE_VERSION);
    must_agree(run, st, "program", "the program", s->program);
    for (const Flag *f = s->flags; f->name; f++) {
        if (f->type == FLAG_TITLE || f->free_on_resume) continue;
        const char *value = value_text(f, text);
        must_agree_on(run, st, "flag", f->name, "--", value ? value : "");
    }
    for (int i = 0; i < s->fingerprint_n; i++)
        must_agree_on(run, st, "data", s->fingerprint[i].name, "the content of --",
                      s->fingerprint[i].text);
    snprintf(text, sizeof text, "%d", run->examples);
    must_agree(run, st, "examples", "the number of examples", text);
}

static void restore_kept(const Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    for (int i = 0; i < s->kept_n; i++) {
        Str key = {0};
        str_printf(&key, "keep.%s", s->kept[i].name);
        const char *text = st_metadata(st, key.s);
        char *end = NULL;
        double value = text ? strtod(text, &end) : 0;
        if (!text || end == text || *end)
            die_usage("cannot go on from %s: it holds no number %s", s->checkpoint, key.s);
        *s->kept[i].value = value;
        free(key.s);
    }
}

void run_cut_lines(const Run *run, const char *path) {
    char *line = NULL;
    size_t room = 0;
    FILE *old = fopen(path, "rb");
    if (!old && errno != ENOENT) die("cannot open %s: %s", path, strerror(errno));
    if (old) {
        NewFile new;
        Error e;
        if (newfile_open(&new, path, &e)) die("%s", e.text);
        for (ssize_t n; (n = getline(&line, &room, old)) > 0;) {
            int step;
            if (line[n - 1] == '\n' && sscanf(line, "{\"step\": %d", &step) == 1 &&
                step <= run->step)
                fwrite(line, 1, (size_t)n, new.f);
        }
        if (!feof(old)) {
            newfile_close(&new, false, &e);
            die("cannot read %s: %s", path, strerror(errno));
        }
        fclose(old);
        if (newfile_close(&new, true, &e)) die("%s", e.text);
    }
    free(line);
}

void run_resume(Run *run, GPT2 *m) {
    struct RunState *s = state_of(run);
    if (!s->checkpoint) return;
    Error e;
    char *path = join(s->checkpoint, STATE_FILE);
    SafeTensors *st = st_open(path, &e);
    if (!st) die_usage("cannot go on: %s", e.text);
    check_agreement(run, st);
    const char *text = st_metadata(st, "step");
    long long step = 0;
    if (!text || !read_whole(text, &step) || step < 0 || step > run->total_steps)
        die_usage("%s: its step is \"%s\"; expected a number from 0 to %d", path, text ? text : "",
                  run->total_steps);
    bool read = !hf_read_moments(st, m, "", &e);
    for (int i = 0; i < s->also_n && read; i++) {
        char *prefix = moments_of(&s->also[i]);
        read = !hf_read_moments(st, s->also[i].m, prefix, &e);
        free(prefix);
    }
    if (!read) die_usage("cannot go on from %s: %s", s->checkpoint, e.text);
    restore_kept(run, st);
    st_close(st);
    run->step = s->saved_step = (int)step;
    if (s->goes_on && writes(run)) {
        char *log = join(run->output, "log.jsonl");
        run_cut_lines(run, log);
        free(log);
        if (run->save_total_limit > 0)
            rotate_checkpoints(run, run->step,
                               run->save_total_limit);  // a kill may have come before that
    }
    printf("going on from %s at step %d of %d\n", s->checkpoint, run->step, run->total_steps);
    fflush(stdout);
    free(path);
}

/* ---- Start and finish ------------------------------------------------------------------------ */

/* Which checkpoint --resume names, and whether it is OUTPUT's own. */
static int find_checkpoint(Run *run, Error *e) {
    struct RunState *s = run->state;
    if (!run->resume || !*run->resume) return 0;
    if (!strcmp(run->resume, "latest")) {
        if (!run->output || !*run->output)
            return fail(
                e,
                "--resume without a directory needs the --output whose newest checkpoint is meant");
        s->checkpoint = newest_checkpoint(run->output, e);
    } else if (!check_checkpoint(run->resume, e)) {
        s->checkpoint = xstrdup(run->resume);
    }
    if (!s->checkpoint) return -1;
    char *parent = join(s->checkpoint, "..");
    s->goes_on = same_directory(parent, run->output);
    free(parent);
    return 0;
}

/* Makes OUTPUT, or sees that it can be written and that nothing in it would be lost. */
static int prepare_output(Run *run, Error *e) {
    const struct RunState *s = run->state;
    if (s->goes_on && run->overwrite_output_dir)
        return fail(
            e, "--resume goes on with what --overwrite_output_dir throws away; give one of them");
    if (!writes(run)) return 0;
    if (make_directories(run->output))
        return fail(e, "cannot make --output %s: %s; choose a directory that is yours to write",
                    run->output, strerror(errno));
    if (!s->goes_on && !run->overwrite_output_dir) {
        struct dirent **list;
        int n = list_directory(run->output, is_content, &list);
        if (n)
            fail(e,
                 "--output %s already holds %s; choose another --output, go on with that run by "
                 "--resume, or start anew "
                 "there with --overwrite_output_dir",
                 run->output, list[0]->d_name);
        free_list(list, n);
        if (n) return -1;
    }
    remove_unfinished(run->output);
    finish_replacing(run);
    char *path = join(run->output, "log.jsonl");
    NewFile probe;
    int status = newfile_open(&probe, path, e);
    if (!status) status = newfile_close(&probe, false, e);
    free(path);
    return status;
}

void run_start(Run *run, const char *program, const char *about, const Flag *own, int argc,
               char **argv) {
    Error e;
    int parsed = run_parse(run, program, own, argc, argv, &e);
    if (parsed < 0) die_usage("%s\n%s --help lists every flag", e.text, program);
    struct RunState *s = run->state;
    if (parsed > 0) {
        print_help(run, about);
        exit(0);
    }
    device_init();
    catch_signal(SIGINT);
    catch_signal(SIGTERM);
    if (find_checkpoint(run, &e) || prepare_output(run, &e)) die_usage("%s", e.text);
    const char *dir = run_model_dir(run);
    s->model_dir = dir ? xstrdup(dir) : NULL;
}

/* An interrupted run keeps what it has; OUTPUT itself is for a finished model. */
static int stop_early(Run *run, const GPT2 *m) {
    const struct RunState *s = run->state;
    if (run->step != s->saved_step) run_checkpoint(run, m);
    if (writes(run))
        printf("stopped at step %d of %d; the same command with --resume goes on\n", run->step,
               run->total_steps);
    else
        printf("stopped at step %d of %d; nothing is kept, for there is no --output\n", run->step,
               run->total_steps);
    return 128 + interrupted;
}

int run_finish(Run *run, const GPT2 *m) {
    struct RunState *s = state_of(run);
    int status = 0;
    clear_progress(s);
    if (interrupted && run->step < run->total_steps) {
        status = stop_early(run, m);
    } else if (writes(run)) {
        Error e;
        begin_writing(run);
        if (save_models(run, m, run->output, true, &e))
            die("%s; the checkpoints in %s are whole", e.text, run->output);
        if (s->save) {
            printf(s->loading, run->output);
            putchar('\n');
        } else
            printf(
                "the model is in %s: give it to --model, or in Python to "
                "%s.from_pretrained(\"%s\")\n",
                run->output,
                gpt2_config(m)->head == SCORE_HEAD ? "AutoModelForSequenceClassification"
                                                   : "AutoModelForCausalLM",
                run->output);
        for (int i = 0; i < s->also_n; i++)
            printf("the %s is in %s/%s\n", s->also[i].name, run->output, s->also[i].name);
    }
    fflush(stdout);
    run_free(run);
    return status;
}
