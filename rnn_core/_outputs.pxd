# Arrays for results.

cimport numpy as cnp

cdef object empty_array(int ndim, cnp.npy_intp *shape, int type)
