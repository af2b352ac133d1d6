/*
 * streams.c - stdin, stdout and stderr: see streams.h.
 *
 * The filter allocates nothing, so that a message about missing memory passes it.
 */
#define _GNU_SOURCE  // defines: fopencookie, on_exit

#include "run/streams.h"

#include "run/signals.h"
#include "text/utf8.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

// bytes of a piece of output, which holds a line; of one character after the filter
enum { ROOM = 8192, LONGEST = 8 };

typedef struct {
    int file;
    char part[4];  // the beginning of a character whose other bytes are still to come
    size_t part_n;
    char out[ROOM];
    size_t n;
    int error;             // errno of the first failure, or 0
    bool closed;           // it was when the program began, and the program needs it
    bool lines;            // a terminal: what is written waits for the end of its line
    bool colour;           // and may have colours
    bool silent, unnoted;  // nothing is written; no line that begins with "note:"
} Filter;

static Filter standard_output = {.file = STDOUT_FILENO}, standard_error = {.file = STDERR_FILENO};

/* ---- characters ------------------------------------------------------------------------------ */

/* Writes a character of n bytes as it may be printed. Returns how many bytes that takes. */
static size_t printable(char out[LONGEST], const char *bytes, Utf8 c) {
    const bool control = c.code < ' ' || (c.code >= 0x7F && c.code < 0xA0);
    if (c.kind != UTF8_WHOLE) {
        memcpy(out, UTF8_REPLACEMENT, 3);
        return 3;
    }
    if (control && c.code != '\n' && c.code != '\t')
        return (size_t)snprintf(out, LONGEST, "\\x%02x", (unsigned)c.code);
    if (utf8_is_hidden(c.code)) return (size_t)snprintf(out, LONGEST, "\\u%04x", (unsigned)c.code);
    memcpy(out, bytes, c.n);
    return c.n;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Writes all bytes, also where the file does not block. Returns 0, or errno. */
static int write_all(int file, const char *bytes, size_t n) {
    while (n) {
        const ssize_t written = write(file, bytes, n);
        if (written > 0) {
            bytes += written;
            n -= (size_t)written;
        } else if (errno == EAGAIN) {
            poll(&(struct pollfd){.fd = file, .events = POLLOUT}, 1, -1);
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

static bool outlives;  // streams_outlive was called

static void reader_has_gone(void) {
    static bool said;
    if (!outlives) signals_leave(SIGPIPE);
    if (outlives && !said) {
        said = true;
        fprintf(stderr,
                "note: nobody reads what is printed any more; the program goes on, and ends with "
                "status 1 when it is done\n");
    }
}

static void write_out(Filter *f, const char *bytes, size_t n) {
    if (f->silent || !n) return;
    const int error = f->closed ? EBADF : write_all(f->file, bytes, n);
    if (!f->error) f->error = error;
    if (error == EPIPE && f == &standard_output) reader_has_gone();
}

static int drawn;  // columns of the line of progress on the screen

static void write_text(Filter *f, const char *text) { write_out(f, text, strlen(text)); }

static void write_blanks(Filter *f, int n) {
    for (; n > 0; n--) write_out(f, " ", 1);
}

static void empty(Filter *f) {
    write_out(f, f->out, f->n);
    f->n = 0;
}

/* ---- lines of a terminal --------------------------------------------------------------------- */

int character_columns(uint32_t c) {
    static const uint32_t wide[][2] = {{0x1100, 0x115F},  {0x2E80, 0x303E}, {0x3041, 0xA4CF},
                                       {0xAC00, 0xD7A3},  {0xF900, 0xFAFF}, {0xFE30, 0xFE6F},
                                       {0xFF00, 0xFF60},  {0xFFE0, 0xFFE6}, {0x1F300, 0x1FAFF},
                                       {0x20000, 0x3FFFD}};
    static const uint32_t none[][2] = {{0x0300, 0x036F}, {0x200B, 0x200F}, {0xFE00, 0xFE0F}};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        if (c >= none[i][0] && c <= none[i][1]) return 0;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (c >= wide[i][0] && c <= wide[i][1]) return 2;
    return 1;
}

static int columns_of(int file, int otherwise) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int n = otherwise;
    if (isatty(file))
        n = !ioctl(file, TIOCGWINSZ, &size) && size.ws_col ? size.ws_col : 80;
    else if (columns && atoi(columns) > 0)
        n = atoi(columns);
    return max_int(40, min_int(n, 1000));
}

int streams_columns(int otherwise) { return columns_of(STDOUT_FILENO, otherwise); }

/* How many bytes of the n at s fit into `room` columns, and the columns that these take. */
static size_t within(const char *s, size_t n, int room, int *columns) {
    size_t at = 0;
    *columns = 0;
    while (at < n) {
        const Utf8 c = utf8_decode(s + at, n - at);
        const int wide = s[at] == '\t' ? 8 - *columns % 8 : character_columns(c.code);
        if (*columns + wide > room) break;
        *columns += wide;
        at += c.n;
    }
    return at;
}

/* The same, up to a blank behind the indentation if there is one; at least one character. */
static size_t fitting(const char *s, size_t n, int room) {
    const size_t indented = strspn(s, " ");
    int columns;
    const size_t at = within(s, n, room, &columns);
    if (at == n || s[at] == ' ') return at;
    for (size_t blank = at; blank-- > indented + 1;)
        if (s[blank] == ' ') return blank;
    return at ? at : utf8_decode(s, n).n;
}

/* The beginning of the lines that continue this one, in columns: below a text after "| ", which has
   the bar again (*bar), else two more than the line's own. */
static int continued_at(const char *line, size_t n, bool *bar) {
    size_t blanks = 0;
    while (blanks < n && line[blanks] == ' ') blanks++;
    *bar = false;
    for (size_t i = 0; i + 1 < n && i < 16; i++) {
        *bar = line[i] == '|' && line[i + 1] == ' ';
        if (*bar) return (int)i + 2;
    }
    return min_int((int)blanks, 12) + 2;
}

/* Writes f->out, which is a line without its end, in as many lines of the screen as it takes. */
static void write_line(Filter *f, int columns) {
    bool bar;
    const int indent = continued_at(f->out, f->n, &bar);
    const char *colour = !f->colour                      ? NULL
                         : !strncmp(f->out, "error:", 6) ? "\033[1;31m"
                         : !strncmp(f->out, "note:", 5)  ? "\033[33m"
                                                         : NULL;
    size_t at = 0;
    if (f->lines && !f->silent) streams_progress("");
    if (f->unnoted && !strncmp(f->out, "note:", 5)) {
        f->n = 0;
        return;
    }
    if (colour) {
        at = strcspn(f->out, ":") + 1;
        write_text(f, colour);
        write_out(f, f->out, at);
        write_text(f, "\033[0m");
    }
    for (int used = (int)at; at < f->n; used = indent) {
        const size_t n = fitting(f->out + at, f->n - at, columns - used);
        write_out(f, f->out + at, n);
        at += n;
        if (at < f->n && f->out[at] == ' ') at += strspn(f->out + at, " ");
        if (at >= f->n) break;
        write_text(f, "\n");
        write_blanks(f, indent - 2 * bar);
        if (bar) write_text(f, "| ");
    }
    write_text(f, "\n");
    f->n = 0;
}

/* ---- the filter ------------------------------------------------------------------------------ */

/* Moves the characters of f->part to f->out; with `end` also the beginning of one. */
static void take(Filter *f, bool end) {
    size_t at = 0;
    while (at < f->part_n) {
        const Utf8 c = utf8_decode(f->part + at, f->part_n - at);
        if (c.kind == UTF8_INCOMPLETE && !end) break;
        if (f->n + LONGEST + 1 > ROOM) empty(f);
        if (f->part[at] == '\n' && (f->lines || f->unnoted)) {
            f->out[f->n] = 0;
            write_line(f, f->lines ? columns_of(f->file, 80) : INT32_MAX);
        } else {
            f->n += printable(f->out + f->n, f->part + at, c);
        }
        at += c.n;
    }
    f->part_n -= at;
    memmove(f->part, f->part + at, f->part_n);
}

static ssize_t filter_write(void *cookie, const char *bytes, size_t n) {
    Filter *f = (Filter *)cookie;
    for (size_t i = 0; i < n; i++) {
        f->part[f->part_n++] = bytes[i];
        take(f, false);
    }
    if (!f->lines && !f->unnoted) empty(f);
    errno = f->error;
    return f->error ? 0 : (ssize_t)n;  // 0 is how such a stream reports an error
}

static FILE *filtered(FILE *plain, Filter *f, int buffering) {
    FILE *stream = fopencookie(f, "w", (cookie_io_functions_t){.write = filter_write});
    if (!stream) return plain;
    setvbuf(stream, NULL, buffering, BUFSIZ);
    return stream;
}

void streams_draw(const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fflush(stdout);
    empty(&standard_output);
    write_text(&standard_output, text);
}

void streams_progress(const char *line) {
    int columns;
    if (standard_output.silent) return;
    const size_t n = within(line, strlen(line), streams_columns(80) - 1, &columns);
    if (drawn) {
        char erased[1100];
        snprintf(erased, sizeof erased, "\r%*s\r", min_int(drawn, 1000), "");
        drawn = 0;
        write_text(&standard_output, erased);
    }
    if (n) streams_draw("%.*s", (int)n, line);
    drawn = columns;
}

void streams_heading(const char *line) {
    const bool bold = standard_output.colour && !standard_output.silent;
    if (bold) streams_draw("\033[1m");
    printf("%s\n", line);
    fflush(stdout);
    if (bold) streams_draw("\033[0m");
}

void streams_say(void) {
    fflush(stdout);
    empty(&standard_output);
    standard_output.lines = standard_output.colour = false;
}

void streams_quiet(bool all) {
    fflush(stdout);
    empty(&standard_output);
    standard_output.silent = all;
    standard_error.unnoted = true;
}

bool streams_are_quiet(void) { return standard_error.unnoted; }

/* ---- begin and end --------------------------------------------------------------------------- */

/* Without this, the next file that is opened would get the number of the one that is closed:
   log.jsonl would receive what is printed. */
static void open_standard_files(void) {
    standard_output.closed = fcntl(STDOUT_FILENO, F_GETFD) < 0;
    int file = open("/dev/null", O_RDWR);
    while (file >= 0 && file <= STDERR_FILENO) file = dup(file);
    if (file >= 0) close(file);
}

static void check_output(int status, void *nothing) {
    (void)nothing;
    fflush(stdout);
    take(&standard_output, true);
    empty(&standard_output);
    empty(&standard_error);
    if (status || !standard_output.error) return;
    fprintf(stderr,
            "error: what the program printed did not all arrive: cannot write to stdout: %s; all "
            "else is done. To see all of it, %s, and run it again\n",
            strerror(standard_output.error), error_remedy(standard_output.error));
    _exit(1);
}

void streams_optional(void) {
    if (!standard_output.closed) return;
    fflush(stdout);
    clearerr(stdout);
    standard_output.closed = false;
    standard_output.error = 0;
}

void streams_outlive(void) {
    streams_optional();
    outlives = true;
}

/* https://no-color.org */
static bool may_colour(void) {
    const char *no = getenv("NO_COLOR"), *terminal = getenv("TERM");
    return !(no && *no) && terminal && strcmp(terminal, "dumb") != 0;
}

void streams_begin(void) {
    static bool begun;
    if (begun) return;
    begun = true;
    open_standard_files();
    standard_output.lines = isatty(STDOUT_FILENO);
    standard_error.lines = isatty(STDERR_FILENO);
    standard_output.colour = standard_output.lines && may_colour();
    standard_error.colour = standard_error.lines && may_colour();
    on_exit(check_output, NULL);
    stdout = filtered(stdout, &standard_output, isatty(STDOUT_FILENO) ? _IOLBF : _IOFBF);
    stderr = filtered(stderr, &standard_error, _IONBF);
}
