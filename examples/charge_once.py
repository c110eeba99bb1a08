"""Charge each invoice once: a map that remembers, a lock with its fencing token, a fenced write.

    python examples/charge_once.py                           in memory, nothing else is needed
    FOLKMOOT_URL=folkmoot://a,b,c python examples/charge_once.py      against a cluster

Several workers go through the same invoices. The lock lets one at a time work on an invoice, and
the map says what was charged. That would do, if no process ever stood still. One that is paused
between taking the lock and charging the card wakes up when another has the lock already, and goes
on. Two things stop it:

- the bank, which is no part of the cluster, refuses tokens that are smaller than one it has seen;
- the map refuses a write with `fence=` once that grant has ended.

And a worker that crashes after it has charged, and before it has said so in the map? The next one
asks the bank first, with its own, greater token: so the answer cannot change behind its back.
"""

import random

import anyio
import attrs

import folkmoot

INVOICES = {"2025-001": 120, "2025-002": 80, "2025-003": 45}


@attrs.frozen
class Receipt:
    amount: int
    by: str


class StaleToken(Exception):
    """Somebody with a greater token was here."""


class Bank:
    """Stands for any other system. All that it has to do for us is to compare tokens."""

    def __init__(self) -> None:
        self.charges: dict[str, Receipt] = {}
        self._tokens: dict[str, int] = {}

    async def find(self, invoice: str, *, token: int) -> Receipt | None:
        await self._check(invoice, token)
        return self.charges.get(invoice)

    async def charge(self, invoice: str, amount: int, by: str, *, token: int) -> Receipt:
        await self._check(invoice, token)
        assert invoice not in self.charges, f"{invoice} is charged twice"
        self.charges[invoice] = Receipt(amount, by)
        return self.charges[invoice]

    async def _check(self, invoice: str, token: int) -> None:
        await anyio.sleep(0.01)  # the way to the bank
        if token < self._tokens.get(invoice, 0):
            raise StaleToken(f"token {token} for {invoice}, {self._tokens[invoice]} was here")
        self._tokens[invoice] = token


async def charge(cluster: folkmoot.Cluster, bank: Bank, invoice: str, by: str) -> bool:
    """Charge an invoice unless that was done; tell whether it was we who did it."""
    receipts = cluster.map("receipts", Receipt)
    async with cluster.lock(f"invoice/{invoice}").hold(timeout=30) as held:
        if await receipts.contains(invoice):
            return False
        receipt = await bank.find(invoice, token=held.token)
        if receipt is None:
            receipt = await bank.charge(invoice, INVOICES[invoice], by, token=held.token)
        await receipts.set(invoice, receipt, fence=held)
        return receipt.by == by


async def work(cluster: folkmoot.Cluster, bank: Bank, name: str) -> None:
    for invoice in random.sample(list(INVOICES), len(INVOICES)):
        if await charge(cluster, bank, invoice, name):
            print(f"{name} charged {invoice}")


async def wake_up_late(cluster: folkmoot.Cluster, bank: Bank) -> None:
    """Go on with a lock that has passed to another, as a process does that was paused."""
    lock = cluster.lock("invoice/2025-001")
    old = await lock.acquire()
    await lock.break_lock()  # as if our session had expired meanwhile
    async with lock as held:
        await bank.find("2025-001", token=held.token)
    try:
        await bank.charge("2025-001", 120, "a late one", token=old.token)
    except StaleToken as error:
        print(f"the bank refused: {error}")
    try:
        await cluster.map("receipts", Receipt).set("2025-001", Receipt(120, "?"), fence=old)
    except folkmoot.Fenced:
        print("the map refused: the grant has ended")


async def main() -> None:
    bank = Bank()
    async with folkmoot.open() as cluster:
        async with anyio.create_task_group() as tasks:
            for name in ("worker-1", "worker-2", "worker-3"):
                tasks.start_soon(work, cluster, bank, name)
        await wake_up_late(cluster, bank)
        print(f"{await cluster.map('receipts', Receipt).size()} receipts")


if __name__ == "__main__":
    anyio.run(main)
