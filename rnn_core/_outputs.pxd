# Arrays for results.

cimport numpy as cnp

cdef object empty_array(int ndim, cnp.npy_intp *shape, int type)

# Small results of one layer or cell: one that nobody else holds is given again.
cdef class Recent:
    cdef list arrays
    cdef Py_ssize_t oldest             # which one the next makes way for, once there are as many as may be
    cdef object empty(self, int ndim, cnp.npy_intp *shape, int type)
