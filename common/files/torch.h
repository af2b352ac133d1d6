/*
 * torch.h - pytorch_model.bin: the tensors of a state dict as torch.save wrote it, read without
 * executing anything.
 */
#ifndef POSTTRAIN_TORCH_H
#define POSTTRAIN_TORCH_H

#include "files/safetensors.h"
#include "util.h"

typedef struct {
    STTensor *tensor;  // in the order of the state dict; all contiguous; several may share elements
    int count;
    char *names;  // owns the tensors' names
} TorchTensors;

/* Finds the tensors in the n bytes of a file. The tensors point into bytes and at name (the path,
   for messages), which must outlive them. 0, or -1 with e filled and t empty: anything but a plain
   state dict of tensors is refused by its name. */
int torch_parse(TorchTensors *t, const void *bytes, size_t n, const char *name, Error *e);
void torch_free(TorchTensors *t);

/* Maps and parses a file. The result has no metadata, and its tensors may share elements. NULL with
 * e filled. */
SafeTensors *torch_open(const char *path, Error *e);

#endif
