import pickle

from sweeps.mlflow_logger import mlflow_logger


def test_a_restored_experiment_logs_where_the_process_that_restores_it_was_told_to() -> None:
    kept = pickle.dumps(mlflow_logger(None, "patch_size"))
    now = mlflow_logger(None, "patch_size")
    assert pickle.loads(kept) is now
