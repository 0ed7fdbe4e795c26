cdef class Buffer:
    cdef object __weakref__
    cdef void *data                      # 64-byte aligned, C order, owned; never moves while the Buffer lives
    cdef readonly Py_ssize_t size        # elements
    cdef readonly Py_ssize_t version     # moves after every write; read it before packing, not after
    cdef readonly tuple shape
    cdef readonly object dtype           # numpy.dtype, float32 or float64

    cdef void touch(self) noexcept       # tells that the memory was written
    cdef object _array(self, bint writeable)

cpdef Py_ssize_t stamp(dict buffers)
