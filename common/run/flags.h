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
 * last of two equal flags counts, so that a script may append "$@".
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
    const char *bare;           // FLAG_TEXT: the value of --name alone; NULL = a value is needed
    const char *conflicts;      // "data eval": flags that are refused together with this one, when
                                // this one is given or is a switch that is on
    const char *only_with;  // "prompt chat" or "advantage=gae", a value of a choice: without one of
                            // these it has no effect, and is refused
    bool given;  // by flags_parse: on the command line, and neither false nor an empty text
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
    const char *example_unless;  // "model data": flags that ask for something else than the example
} FlagLines;

typedef struct FlagTable FlagTable;

FlagTable *flags_new(void);
/* Appends rows, which end with {0}. The table keeps a copy. A row whose name is in `without`
   ("a b c"; NULL = none) is left out: its variable gets the default, and the flag does not exist.
 */
void flags_add(FlagTable *t, const Flag *rows, const char *without);
/* Gives every variable its value. Returns 0; or 1 when --help is given, and then the variables hold
   the program's defaults; or -1 with e filled. The message names the flag, its value and what it
   takes, and for an unknown flag the nearest known one. argv[0] is not read. */
int flags_parse(FlagTable *t, const FlagLines *lines, int argc, char **argv, Error *e);
void flags_free(FlagTable *t);

/* The row of that name, or NULL. */
const Flag *flags_find(const FlagTable *t, const char *name);
/* Row i, or NULL past the last. */
const Flag *flags_at(const FlagTable *t, int i);
/* The value as a command line spells it, perhaps in `text`; NULL: a text that is not set. */
const char *flag_text(const Flag *f, char text[64]);
/* Prints --help on stdout: each flag's name, default and help, the presets, and the example. */
void flags_print_help(const FlagTable *t, const FlagLines *lines, const char *program,
                      const char *about);
/* Prints all values on stdout, as flags that repeat the run. A flag is left out if it conflicts
   with a given one or a switch that is on, or has no effect without one that is not set. */
void flags_echo(const FlagTable *t);

/* The path of a file of the built-in example: test/NAME in the program's directory or up to two
   directories above it, wherever the program was started from. Kept for the life of the program. */
const char *example_file(const char *name);

/* Is name one of the words of list, which are separated by blanks? list may be NULL. */
bool word_in(const char *list, const char *name);
/* Strictly a decimal number, finite: false where strtod would take blanks, "nan" or hexadecimal. */
bool read_number(const char *text, double *value);
bool read_whole(const char *text, long long *value);
/* The shortest decimal that reads back as the same float (or double, where x is not a float's). */
const char *number_text(double x, char text[64]);

#endif
