"""A wake-up that cannot be missed between looking and waiting, on one event loop."""

import anyio


class Signal:
    """`notify` wakes everyone who waits now. Look at the state, then `wait`: nothing runs between the two."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
