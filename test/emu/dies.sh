#!/bin/sh
# Do the other tests run when one ends its process? Here every product of the emulated cuBLASLt
# fails. Of the four tests of the case gelu only one has products, and the message must have the
# words of cuBLASLt.
#
#   sh test/emu/dies.sh BUILD    BUILD: a directory with check_kernels, such as .build/gcc/emu
set -eu
said=$(CUDA_EMU_CUBLAS=14 CK_RUN_CASE=gelu "$1/check_kernels" 2>&1) && failed=0 || failed=$?
for words in "an internal operation failed (cuBLASLt's status 14)" \
    "Checks: 4, Failures: 0, Errors: 1"; do
    case $said in *"$words"*) ;; *)
        echo "✗ this is not in what check_kernels says: $words"
        echo "$said"
        exit 1 ;;
    esac
done
[ "$failed" != 0 ]
echo "✓ a test that dies leaves the others their turn"
