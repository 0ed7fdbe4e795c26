# Arrays for results.

cimport numpy as cnp

cdef object empty_array(int ndim, cnp.npy_intp *shape, int type)

cdef class Recent:
    cdef list arrays
    cdef Py_ssize_t oldest
    cdef object empty(self, int ndim, cnp.npy_intp *shape, int type)
