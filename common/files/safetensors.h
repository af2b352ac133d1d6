/*
 * safetensors.h - reads and writes safetensors files.
 *
 * Every file is hostile until checked. A refusal names the file, the tensor, the value found and
 * the value expected.
 */
#ifndef POSTTRAIN_SAFETENSORS_H
#define POSTTRAIN_SAFETENSORS_H

#include "util.h"

typedef enum {
    ST_F32,
    ST_F16,
    ST_BF16,
    ST_F64,
    ST_I64,
    ST_I32,
    ST_I16,
    ST_I8,
    ST_U8,
    ST_BOOL,
    ST_OTHER  // any other type that the format defines
} STType;

typedef struct {
    const char *name, *file;  // file: the path, for messages
    STType type;
    char type_name[12];
    int ndim;
    size_t shape[8];
    size_t n;                   // elements
    const unsigned char *data;  // in the mapped file, unaligned: read it with memcpy or st_floats
    size_t bytes;
} STTensor;

/* ---- Reading --------------------------------------------------------------------------------- */

typedef struct SafeTensors SafeTensors;

/* Maps and checks a file. NULL with e filled. A tensor is read from the mapped file only when it is
   used; mapped.h says what happens when the file changes meanwhile. */
SafeTensors *st_open(const char *path, Error *e);
/* The same for n bytes in memory, which must outlive the result. name is for messages. */
SafeTensors *st_parse(const void *bytes, size_t n, const char *name, Error *e);
void st_close(SafeTensors *st);

const char *st_path(const SafeTensors *st);  // as given to st_open
int st_count(const SafeTensors *st);
const STTensor *st_at(const SafeTensors *st, int i);               // in the order of the data
const STTensor *st_find(const SafeTensors *st, const char *name);  // NULL when absent
int st_index(const SafeTensors *st, const STTensor *t);  // -1 when t belongs to another file
const char *st_metadata(const SafeTensors *st, const char *key);  // NULL when absent
/* A hash of all metadata, in any order, but those of one key. */
uint64_t st_metadata_hash(const SafeTensors *st, const char *except);

/* Is it a tensor of one of these types, which st_floats reads? */
#define ST_REALS "F32, F16, BF16 or F64"
bool st_is_real(const STTensor *t);
/* Elements [offset, offset + n) of such a tensor as floats; those of F64 are rounded. -1 with e
   filled for any other type. */
int st_floats(const STTensor *t, size_t offset, size_t n, float *out, Error *e);
bool st_has_shape(const STTensor *t, int ndim, const size_t *shape);
/* Writes a shape of at most 8 sizes, such as "[50257,768]", to out and returns out. */
const char *st_shape_text(char out[192], int ndim, const size_t *shape);

/* For files in another format (torch.c). Makes a SafeTensors without metadata from the count
   tensors in a file that map_file has mapped. It takes over the mapping, tensor[] and names, the
   memory that the tensors' names point into, and sets every tensor's file. */
SafeTensors *st_of_tensors(const char *path, const void *bytes, size_t size, STTensor *tensor,
                           int count, char *names);

/* ---- Writing --------------------------------------------------------------------------------- */

/* First declare every tensor and piece of metadata, then call st_begin, then write the data in the
   order of declaration, in pieces of any size. Always finish with st_end. */
typedef struct STWriter STWriter;

STWriter *st_new(void);
void st_declare(STWriter *w, const char *name, int ndim, const size_t *shape);  // F32
void st_note(STWriter *w, const char *key, const char *value);  // metadata; "format": "pt" is given
/* All metadata of a file, but those of one key. */
void st_note_all(STWriter *w, const SafeTensors *st, const char *except);
uint64_t st_noted_hash(const STWriter *w);  // st_metadata_hash of the metadata given so far
int st_begin(STWriter *w, const char *path, Error *e);  // the data start at a multiple of 64 bytes
int st_write(STWriter *w, const float *data, size_t n, Error *e);
/* Syncs the file and hands it out under its temporary name, for newfile_place. Frees w, also when
   it fails: -1 with e filled and no file. */
int st_finish(STWriter *w, NewFile *file, Error *e);
/* With keep: syncs the file and renames it into place. Without: removes it. Frees w. */
int st_end(STWriter *w, bool keep, Error *e);

#endif
