import psycopg
import pytest

from queue_worker import App
from queue_worker.config import load_settings
from queue_worker.service import Service
from tests.helpers import Running, wait_until
from tests.supabase.project import Project

pytestmark = pytest.mark.full


def test_worker(supabase: Project, tmp_path) -> None:
    app = App(builtins=False)
    seen = []

    @app.processor("work")
    def work(job):
        seen.append(job.payload)

    settings = load_settings({**supabase.settings(), "state_dir": tmp_path / "s"})
    w = Running(Service(settings, app))
    try:
        wait_until(lambda: w.service.ready.is_set() or w.error, 10)
        with psycopg.connect(supabase.dsn, autocommit=True) as db:
            for i in range(50):
                db.execute("select queue_worker.send('work', jsonb_build_object('n', %s::int))", [i])
            wait_until(lambda: db.execute("select count(*) from pgmq.a_work").fetchone() == (50,), 10)
    finally:
        print(w.stop())
    print(supabase.gateway.calls)
