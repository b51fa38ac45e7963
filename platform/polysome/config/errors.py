"""The errors a user meets: each says what is wrong, where, and how to mend it."""


class PolysomeError(Exception):
    """Base of every expected failure.

    Args:
        what: the fact that is wrong, with the offending value.
        where: file, field, line or record; empty when it is the whole command.
        fix: how to mend it, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        # All three are positional in `args`, so that the error survives pickling between Ray processes.
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


def _rebuild(kind: type[PolysomeError], what: str, where: str, fix: str) -> PolysomeError:
    return kind(what, where=where, fix=fix)


class ConfigurationError(PolysomeError):
    """A recipe, spec, option or environment variable is wrong. Exit code 2."""

    exit_code = 2


class DataError(PolysomeError):
    """Input data is missing, unreadable, or not what its spec declares. Exit code 2."""

    exit_code = 2


class ResourceError(PolysomeError):
    """The machine or cluster lacks what the job needs: memory, CPUs, GPUs, a port, disk. Exit code 3."""

    exit_code = 3
