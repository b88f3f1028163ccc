"""The interpreter's heap in processes that take steps for long."""

import gc


def freeze_heap() -> None:
    """Leaves all objects that are there now out of later garbage collections: those of torch and of a loaded
    model are 200,000 and live as long as the process, and a full collection that walks them holds the
    interpreter for 0.1 s, in which no step begins and nobody is answered.
    """
    gc.unfreeze()  # of a model before this one
    gc.collect()
    gc.freeze()
