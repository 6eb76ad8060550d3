/* The logits of a folded gate in one read of its input, shared out among OpenMP's threads.
 *
 * PyTorch takes a few operations for that, each of which begins with code that convolutions have
 * driven out of the processor's cache. This module is linked against no OpenMP: it finds that of
 * PyTorch, which is to be imported before it, and whose threads it takes.
 */
#include <Python.h>

/* Functions compiled for wide registers, too, where the linker can choose when it loads them. */
#if defined(__GLIBC__) && defined(__x86_64__)
#define VECTORIZED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORIZED
#endif

enum {
    ROWS = 8,         /* that are added at once, two and two: sums of few are more exact */
    PIECES = 8,       /* that an image is cut into at most, however many threads there are */
    PER_PIECE = 12,   /* positions at least */
    LANES = 16,       /* products that are added side by side */
    SHARED = 1 << 15, /* numbers from which it takes longer to read them than to wake threads */
};

/* Write the sum of `positions` rows of `channels` numbers. */
VECTORIZED static void
sum_rows(const float *row, Py_ssize_t positions, Py_ssize_t channels, float *total)
{
    for (Py_ssize_t c = 0; c < channels; c++)
        total[c] = 0;
    for (; positions >= ROWS; positions -= ROWS, row += ROWS * channels)
        for (Py_ssize_t c = 0; c < channels; c++) {
            const float *x = row + c;
            total[c] += ((x[0] + x[channels]) + (x[2 * channels] + x[3 * channels])) +
                        ((x[4 * channels] + x[5 * channels]) + (x[6 * channels] + x[7 * channels]));
        }
    for (; positions > 0; positions--, row += channels)
        for (Py_ssize_t c = 0; c < channels; c++)
            total[c] += row[c];
}

VECTORIZED static float
dot(const float *x, const float *y, Py_ssize_t count)
{
    float lanes[LANES] = {0}, product = 0;
    for (; count >= LANES; count -= LANES, x += LANES, y += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += x[lane] * y[lane];
    for (int lane = 0; lane < LANES; lane++)
        product += lanes[lane];
    for (; count > 0; count--)
        product += *x++ * *y++;
    return product;
}

/* From the sums of an image's pieces to its logit; the first sum becomes that of all. */
VECTORIZED static float
logit_of(float *sums, Py_ssize_t pieces, Py_ssize_t positions, Py_ssize_t channels,
         const float *unit, Py_ssize_t width, float logit)
{
    for (Py_ssize_t piece = 1; piece < pieces; piece++)
        for (Py_ssize_t c = 0; c < channels; c++)
            sums[c] += sums[piece * channels + c];
    for (; width > 0; width--, unit += 2 + channels) {
        float hidden = dot(unit + 2, sums, channels) / (float)positions + unit[0];
        if (!(hidden <= 0)) /* what is not a number stays so */
            logit += hidden * unit[1];
    }
    return logit;
}

static void
compute(const float *x, Py_ssize_t images, Py_ssize_t positions, Py_ssize_t channels,
        Py_ssize_t pieces, float *sums, const float *units, Py_ssize_t width, float bias,
        float *logits)
{
#pragma omp parallel if (images * positions * channels >= SHARED)
    {
#pragma omp for schedule(static)
        for (Py_ssize_t task = 0; task < images * pieces; task++) {
            Py_ssize_t image = task / pieces, piece = task % pieces;
            Py_ssize_t first = positions * piece / pieces;
            Py_ssize_t count = positions * (piece + 1) / pieces - first;
            sum_rows(x + (image * positions + first) * channels, count, channels,
                     sums + task * channels);
        }
#pragma omp for schedule(static)
        for (Py_ssize_t image = 0; image < images; image++)
            logits[image] = logit_of(sums + image * pieces * channels, pieces, positions, channels,
                                     units, width, bias);
    }
}

static PyObject *
logits(PyObject *self, PyObject *args)
{
    unsigned long long address;
    Py_ssize_t images, positions;
    PyObject *weights, *list = NULL;
    Py_buffer view;
    float bias;
    (void)self;
    if (!PyArg_ParseTuple(args, "KnnOf", &address, &images, &positions, &weights, &bias) ||
        PyObject_GetBuffer(weights, &view, PyBUF_ND | PyBUF_FORMAT) < 0)
        return NULL;
    if (view.ndim != 2 || strcmp(view.format, "f") != 0 || view.shape[1] < 2 || images < 0 ||
        positions < 1) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "expected images, positions and units as float32");
        return NULL;
    }
    Py_ssize_t width = view.shape[0], channels = view.shape[1] - 2;
    Py_ssize_t pieces = Py_MAX(1, Py_MIN(PIECES, positions / PER_PIECE));
    float *results = PyMem_Malloc(images * (1 + pieces * channels) * sizeof(float));
    if (results == NULL) {
        PyBuffer_Release(&view);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS;
    compute((const float *)(size_t)address, images, positions, channels, pieces, results + images,
            view.buf, width, bias, results);
    Py_END_ALLOW_THREADS;
    list = PyList_New(images);
    for (Py_ssize_t image = 0; list != NULL && image < images; image++) {
        PyObject *logit = PyFloat_FromDouble(results[image]);
        if (logit == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, image, logit);
    }
    PyMem_Free(results);
    PyBuffer_Release(&view);
    return list;
}

static PyMethodDef methods[] = {
    {"logits", logits, METH_VARARGS, "Return the logits of images that lie at an address."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit_native(void)
{
    return PyModuleDef_Init(&module);
}
