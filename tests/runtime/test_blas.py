"""BLAS stays on one thread while anybody needs it."""

from threading import Event, Thread

from threadpoolctl import threadpool_info

from onnx24.runtime.blas import one_thread


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_who_leaves_first_takes_nothing_from_who_still_computes() -> None:
    with one_thread():  # all libraries are loaded
        pass
    before, entered, leave = threads(), Event(), Event()

    def other() -> None:
        with one_thread():
            entered.set()
            leave.wait(60)

    thread = Thread(target=other)
    with one_thread():
        thread.start()
        assert entered.wait(60)
    assert threads() == {1}
    leave.set()
    thread.join()
    assert threads() == before
