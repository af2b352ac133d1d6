/*
 * flags.h - a table of flags is parser, default, help and echo at once.
 *
 * A row holds its default as text, and the table is filled in from command lines, each of which
 * overrides the ones before it:
 *
 *     row < program < preset < example < command line
 *
 * Names are spelled with '_'. On a command line '-' and '_' are the same. A value follows its name
 * after '=' or as the next word. A switch is --name, --no_name, or --name with true or false. The
 * last of two equal flags counts, so that a script may append "$@". Names of other libraries are in
 * spelling.h.
 *
 * A number has the bounds of its row. One outside them, or one that is not a number, is refused
 * with a sentence that names the bounds; nothing is rounded or cut to fit. The bounds of two sizes
 * that are multiplied are such that 64 bits hold the product, and what is computed from flags is
 * computed in 64 bits.
 *
 * A flag that cannot have an effect is refused with a sentence, so that nobody waits for one. These
 * ask for nothing, are never refused and exclude nothing: a switch that is off, an empty text, a
 * count of 0. A number equal to its row's default excludes nothing, either.
 */
#ifndef POSTTRAIN_FLAGS_H
#define POSTTRAIN_FLAGS_H

#include "util.h"

typedef enum {
    FLAG_BOOL,
    FLAG_INT,
    FLAG_LONG,
    FLAG_FLOAT,
    FLAG_TEXT,
    FLAG_CHOICE,
    FLAG_TITLE
} FlagType;

/* A row is written with one of the macros below, its help, and perhaps a named member:
 *     {"kl_coef", NUMBER(args.kl_coef, "0.05", 0, 1e6), "(4) the weight β of the KL penalty"}, */
typedef struct {
    const char *name;
    FlagType type;
    void *value;                // the variable: bool, int, int64_t, float, const char * or an enum
    const char *initial;        // its default as text; NULL: a text that is not set
    double low, high;           // a number outside [low, high] is refused; both 0 = any
    const char *choices;        // FLAG_CHOICE: "k1|k2|k3"; the variable gets the position, from 0
    const char *help;           // one complete sentence, with the unit
    bool may_change_on_resume;  // the flag cannot change the bits of a run
    bool many;                  // FLAG_TEXT: several words may follow, which become "a,b"
    const char *bare;           // FLAG_TEXT: the value of --name alone; NULL = a value is needed
    const char *conflicts;      // "data eval": flags that are refused together with this one, when
                                // this one is given or is a switch that is on
    const char *uses;       // of a flag that asks for something else than training: the flags that
                            // have an effect with it, "a b"; others are refused. NULL: no other
    const char *only_with;  // "prompt chat" or "advantage=gae", a value of a choice: without one of
                            // these it has no effect, and is refused
    bool may_be_empty;  // FLAG_TEXT: an empty text has a meaning. Otherwise it is refused: it comes
                        // from a variable of the shell that is not set
    bool given;         // by flags_parse: on the command line, and neither false nor an empty text
} Flag;

/* A number from low to high; high INFINITY = no upper limit. */
#define NUMBER(variable, initially, lowest, highest)                                  \
    .type = _Generic((variable), int                                                  \
                     : FLAG_INT, int64_t                                              \
                     : FLAG_LONG, float                                               \
                     : FLAG_FLOAT),                                                   \
    .value = &(variable), .initial = (initially), .low = (lowest), .high = (highest), \
    .choices = NULL
#define SWITCH(variable, initially)   \
    .type = _Generic((variable), bool \
                     : FLAG_BOOL),    \
    .value = &(variable), .initial = (initially), .choices = NULL
#define TEXT(variable, initially) \
    .type = _Generic((variable), const char * : FLAG_TEXT), .value = &(variable),             \
    .initial = (initially), .choices = NULL
/* An enum whose constants are in the order of the choices */
#define CHOICE(variable, initially, names) \
    .type = _Generic((variable), unsigned  \
                     : FLAG_CHOICE),       \
    .value = &(variable), .initial = (initially), .choices = (names)
/* A heading of --help */
#define TITLE(text) \
    { .name = "", .type = FLAG_TITLE, .help = (text) }

/* A command line as a constant: COMMAND_LINE("--kl_coef=0.15", "--adap_kl_ctrl") */
#define COMMAND_LINE(...) ((const char *const[]){__VA_ARGS__, NULL})

/* A command line with a name: --preset NAME. */
typedef struct {
    const char *name, *source;  // source: the paper that publishes these settings
    const char *const *line;    // {"--kl_coef=0.15", ..., NULL}
} Preset;

/* What fills in the table before the command line. Each line ends with NULL; NULL = none. */
typedef struct {
    const char *const *program;  // this program's defaults where they differ from the rows'
    const Preset *presets;       // ends with {0}; adds the flag --preset
    const char *const *example;  // the built-in example; "--x=test/..." becomes example_file's path
    const char *example_unless;  // "model data": the example applies if none of these is given
    const char *notes;           // lines that --help prints after the flags, as they are
    const char *uses;            // lines that -h prints: command lines for what is done most
} FlagLines;

typedef struct FlagTable FlagTable;

FlagTable *flags_new(void);
/* Appends rows, which end with {0}. The table keeps a copy. A row whose name is in `without`
   ("a b c"; NULL = none) is left out: its variable gets the default, and the flag does not exist.
 */
void flags_add(FlagTable *t, const Flag *rows, const char *without);
/* What a command line may ask for instead of a run. */
enum { FLAGS_HELP = 1, FLAGS_SHORT_HELP, FLAGS_VERSION };
/* Gives every variable its value. Returns 0; or one of the above for --help, -h and --version, and
   then the variables hold the program's defaults; or -1 with e filled. The message names the flag,
   its value and what it takes, and for an unknown flag the nearest known one. argv[0] is not read.
 */
int flags_parse(FlagTable *t, const FlagLines *lines, int argc, char **argv, Error *e);
void flags_free(FlagTable *t);

/* -1 with e filled if a flag is given that is not in the list `uses` ("a b") and not `mode`, the
   flag which says that the others have no effect. */
int flags_check_uses(const FlagTable *t, const char *mode, const char *uses, Error *e);

/* Does a given flag ask for nothing: is it a count of 0? */
bool flags_idle(const Flag *f);
/* The row of that name, or NULL. */
const Flag *flags_find(const FlagTable *t, const char *name);
/* Row i, or NULL past the last. */
const Flag *flags_at(const FlagTable *t, int i);
/* The value as a command line spells it, perhaps in `text`; NULL: a text that is not set. */
const char *flag_text(const Flag *f, char text[64]);
/* Prints --help on stdout: each flag's name, default and help, the presets, and the example. The
   values are the defaults. Lines have at most `columns` columns of a screen. */
void flags_print_help(const FlagTable *t, const FlagLines *lines, const char *program,
                      const char *about, int columns);
/* Prints -h on stdout: what the program does, examples, and the flags that are used most. */
void flags_print_short_help(const FlagTable *t, const FlagLines *lines, const char *program,
                            const char *about, int columns);
/* Prints the values that differ from the program's defaults on stdout, as flags that repeat the
   run, after a line with the heading. If none does, prints nothing. A flag is left out if it
   conflicts with a given one or a switch that is on, or has no effect without one that is not set.
 */
void flags_echo(const FlagTable *t, const char *heading, int columns);
/* Appends text as a shell reads it back. */
void add_quoted(Str *line, const char *text);

/* The path of a file of the built-in example: test/NAME in the program's directory or up to two
   directories above it, wherever the program was started from. Kept for the life of the program. */
const char *example_file(const char *name);

/* -1 with e filled if a file or directory of the example is not there: the program was copied away
   from the repository. */
int example_check(const char *path, Error *e);

/* Is name one of the words of list, which are separated by blanks? list may be NULL. */
bool word_in(const char *list, const char *name);
/* Strictly a decimal number, finite: false where strtod would take blanks, "nan" or hexadecimal. */
bool read_number(const char *text, double *value);
bool read_whole(const char *text, long long *value);
/* The shortest decimal that reads back as the same float (or double, where x is not a float's). */
const char *number_text(double x, char text[64]);

#endif
