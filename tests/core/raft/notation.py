"""Messages and writes as one line each, for golden scripts and failures."""

from __future__ import annotations

from folkmoot.core.raft import (
    Append,
    AppendReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    Write,
)


def show(message: Message) -> str:
    """One line for a message, as short as it can be read."""
    match message:
        case Append():
            batches = " ".join(
                f"[{b.first_index}..{b.last_index} t{b.term}]" for b in message.batches
            )
            return (
                f"append term={message.term} after={message.prev_index}/t{message.prev_term} "
                f"commit={message.commit_index} round={message.round} {batches}"
            ).rstrip()
        case AppendReply(success=True):
            return (
                f"stored term={message.term} match={message.match_index} round={message.round}"
                + (" wants-commit" if message.wants_commit else "")
            )
        case AppendReply():
            return (
                f"refused term={message.term} after={message.prev_index} "
                f"try={message.conflict_index}/t{message.conflict_term} round={message.round}"
            )
        case VoteRequest():
            kind = "pre-vote?" if message.pre else "vote?"
            return f"{kind} term={message.term} log={message.last_index}/t{message.last_term}" + (
                " transfer" if message.transfer else ""
            )
        case VoteReply():
            kind = "pre-vote" if message.pre else "vote"
            answer = "granted" if message.granted else "refused"
            return f"{kind} {answer} for={message.election_term} term={message.term}"
        case TimeoutNow():
            return f"timeout-now term={message.term}"
        case ReadIndexRequest():
            return f"read-index? term={message.term}"
        case ReadIndexReply():
            return f"read-index term={message.term} index={message.index}"


def show_write(write: Write) -> str:
    """One line for a write."""
    parts = [f"write {write.number}:"]
    if write.hard_state is not None:
        parts.append(f"term={write.hard_state.term} vote={write.hard_state.voted_for}")
    if write.install is not None:
        parts.append(f"install {write.install.index}/t{write.install.term}")
    if write.truncate_after is not None:
        parts.append(f"cut after {write.truncate_after}")
    parts += [f"[{b.first_index}..{b.last_index} t{b.term}]" for b in write.batches]
    return " ".join(parts)
