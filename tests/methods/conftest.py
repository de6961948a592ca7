from tests.methods.contract import earlier  # noqa: F401
