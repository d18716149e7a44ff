"""The tables. Money is BIGINT nano-dollars, instants are BIGINT microseconds UTC, documents are JSON."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    or_,
    text,
)

from cluster.states import State

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BigId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite only counts up INTEGER keys by itself

dispatcher = Table(
    "dispatcher",
    metadata,
    Column("id", Integer, primary_key=True),  # one row, id 1
    Column("term", BigInteger, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("alive_us", BigInteger),  # written every few seconds
)

shows = Table(
    "shows",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("share", Float, nullable=False, server_default=text("1")),  # weight beside the other shows
    Column("created_us", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("show", String(64), nullable=False),
    Column("recipe", String(128), nullable=False),  # import string of the recipe
    Column("version", Integer, nullable=False),
    Column("title", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("tier", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("deadline_us", BigInteger),
    Column("held", Boolean, nullable=False),
    Column("target", String(16), nullable=False),  # run | cancel
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64), nullable=False),  # of what was asked, to tell a retry from a clash of keys
    Column("request", JSON, nullable=False, server_default=text("'{}'")),  # who asked, and what they want to read back
    Column("estimate", JSON),  # as it was at submit: spans of nano, elapsed_s, held_s
    Column("seq", BigInteger, nullable=False),  # number of the job's newest event
    Column("num_tasks", Integer, nullable=False),
    *(Column(f"n_{s.value}", Integer, nullable=False, server_default=text("0")) for s in State),
    Column("created_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("deleted_us", BigInteger),  # since then nobody is shown it; its events and its bill stay
    Column("released_us", BigInteger),  # since then its files are nobody's: what is not another job's is removed
    UniqueConstraint("tenant", "idempotency_key"),
)
Index("ix_jobs_ready", jobs.c.n_ready)
Index("ix_jobs_tenant_created", jobs.c.tenant, jobs.c.created_us)
Index("ix_jobs_tenant_ended", jobs.c.tenant, jobs.c.ended_us)
Index(  # totals read it instead of the rows
    "ix_jobs_over",
    *(jobs.c[name] for name in ("recipe", "n_pending", "n_stale", "n_canceled", "n_dead", "n_not_compatible")),
    sqlite_where=jobs.c.ended_us.is_not(None),
    postgresql_where=jobs.c.ended_us.is_not(None),
)
Index(
    "ix_jobs_open",
    jobs.c.recipe,
    sqlite_where=jobs.c.ended_us.is_(None),
    postgresql_where=jobs.c.ended_us.is_(None),
)
Index("ix_jobs_tenant_fingerprint", jobs.c.tenant, jobs.c.fingerprint, jobs.c.created_us)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job_id", String(40), ForeignKey("jobs.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("key", String(128), nullable=False),
    Column("step", String(64), nullable=False),
    Column("role", String(32), nullable=False),
    Column("entry", String(255), nullable=False),
    Column("params", JSON, nullable=False),
    Column("model", String(128)),
    Column("weight", Float, nullable=False),
    Column("expands", Boolean, nullable=False),
    Column("cacheable", Boolean, nullable=False),
    Column("gate", String(64)),  # its answer waits for a person, until another task of its gate is approved
    Column("state", String(16), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("unmet", Integer, nullable=False),
    Column("not_before_us", BigInteger),
    Column("failures", JSON, nullable=False),  # {failure class: count} in this generation
    Column("reason", Text),  # why it is DEAD, in BACKOFF, SUSPENDED, ...
    Column("content_key", String(64)),
    Column("attempt_id", String(40)),  # the running attempt, or the one that committed
    Column("receipt_key", Text),
    Column("files", JSON),  # of the receipt: what dependants read
    Column("result", JSON),  # small facts that dependants read
    Column("changed_us", BigInteger, nullable=False),
    UniqueConstraint("job_id", "key"),
)
Index("ix_tasks_job_state", tasks.c.job_id, tasks.c.state, tasks.c.ordinal)
Index("ix_tasks_backoff", tasks.c.state, tasks.c.not_before_us)
Index("ix_tasks_content_key", tasks.c.content_key, tasks.c.state)

edges = Table(
    "edges",
    metadata,
    Column("task_id", String(40), ForeignKey("tasks.id"), primary_key=True),
    Column("needs_id", String(40), ForeignKey("tasks.id"), primary_key=True),
)
Index("ix_edges_needs", edges.c.needs_id)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("task_id", String(40), ForeignKey("tasks.id"), nullable=False),
    Column("job_id", String(40), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("worker_id", String(128), nullable=False),
    Column("request_id", String(64), nullable=False),  # of the lease call: a lost reply finds its lease again
    Column("state", String(16), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("failure", String(16)),
    Column("code", String(64)),
    Column("message", Text),
    Column("receipt_key", Text),
    Column("facts", JSON),  # seconds by stage, versions, determinism class
    Column("reserved_nano", BigInteger),  # of its budgets, beyond what is booked; null: under none, or over
    UniqueConstraint("task_id", "epoch"),
)
Index(
    "uq_attempts_one_commit",
    attempts.c.task_id,
    attempts.c.generation,
    unique=True,
    sqlite_where=attempts.c.state == "succeeded",
    postgresql_where=attempts.c.state == "succeeded",
)
Index(
    "ix_attempts_running",
    attempts.c.task_id,
    sqlite_where=attempts.c.state == "running",
    postgresql_where=attempts.c.state == "running",
)
Index("ix_attempts_worker", attempts.c.worker_id, attempts.c.state)
Index("ix_attempts_job", attempts.c.job_id)

workers = Table(
    "workers",
    metadata,
    Column("id", String(128), primary_key=True),  # the incarnation
    Column("fleet", String(64), nullable=False),
    Column("role", String(32), nullable=False),
    Column("model", String(128)),
    Column("node", String(128), nullable=False),
    Column("accelerator", String(64), nullable=False),
    Column("num_accelerators", Integer, nullable=False),
    Column("price_class", String(32), nullable=False),
    Column("rate_card", String(64), nullable=False),
    Column("nano_per_hour", BigInteger, nullable=False),  # of the whole worker
    Column("spawned_us", BigInteger, nullable=False),  # its holding began
    Column("since_us", BigInteger, nullable=False),  # up to here its time is accounted for
    Column("ended_us", BigInteger),
    Column("facts", JSON, nullable=False),
    Column("drain_us", BigInteger),  # since then it gets no more work; it ends what runs, or checkpoints it
    Column("drain_reason", Text),
)
Index("ix_workers_ended", workers.c.ended_us)

events = Table(
    "events",
    metadata,
    Column("job_id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(48), nullable=False),
    Column("task_id", String(40)),
    Column("attempt_id", String(40)),
    Column("epoch", BigInteger),
    Column("from_state", String(16)),
    Column("to_state", String(16)),
    Column("data", JSON, nullable=False),
)

Index(
    "ix_events_cached",
    events.c.at_us,
    sqlite_where=events.c.kind == "task.cached",
    postgresql_where=events.c.kind == "task.cached",
)

worker_events = Table(
    "worker_events",
    metadata,
    Column("worker_id", String(128), ForeignKey("workers.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(48), nullable=False),  # worker.join | leave | drain | clock | overtaken
    Column("data", JSON, nullable=False),
)

cost_lines = Table(
    "cost_lines",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),  # of held time busy | wasted | load | idle; tokens | storage | egress
    Column("tenant", String(64), nullable=False),
    Column("show", String(64), nullable=False),
    Column("job_id", String(40)),
    Column("task_id", String(40)),
    Column("attempt_id", String(40)),
    Column("worker_id", String(128)),  # whose time was held; none for what a meter counted
    Column("from_us", BigInteger, nullable=False),
    Column("to_us", BigInteger, nullable=False),
    Column("held_us", BigInteger, nullable=False),  # this line's part of the interval; negative in a reversal
    Column("nano", BigInteger, nullable=False),
    Column("accelerator", String(64)),
    Column("price_class", String(32), nullable=False),
    Column("rate_card", String(64), nullable=False),
    Column("note", Text),  # why it books another line again, or why it came late
    Column("quantity", BigInteger),  # what a meter counted: in `unit`, priced at `price_nano`
    Column("unit", String(32)),  # tokens | MiB-seconds (a year of 100 TiB in bytes overflows) | bytes
    Column("item", String(32)),  # of tokens: prompt | completion
    Column("model", String(128)),  # of tokens
    Column("price_nano", BigInteger),  # of a million tokens, a GiB-month (730 h), a GiB
)
Index("ix_cost_lines_job", cost_lines.c.job_id)
Index("ix_cost_lines_attempt", cost_lines.c.attempt_id)
Index("ix_cost_lines_worker", cost_lines.c.worker_id)
Index("ix_cost_lines_tenant_at", cost_lines.c.tenant, cost_lines.c.at_us)
Index(
    "ix_cost_lines_metered",
    cost_lines.c.kind,
    sqlite_where=cost_lines.c.worker_id.is_(None),
    postgresql_where=cost_lines.c.worker_id.is_(None),
)

assets = Table(
    "assets",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("media_type", String(128), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("show", String(64), nullable=False, server_default=text("'default'")),  # that made it first pays its room
    Column("used_us", BigInteger, nullable=False, server_default=text("0")),  # when it was committed last
    Column("marked_us", BigInteger),  # since then a collection finds nobody who needs it
    Column("swept_us", BigInteger),  # since then it is removed; the row stays for an hour, to refuse commits
)

takes = Table(
    "takes",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("content_key", String(64), primary_key=True),
    Column("task_id", String(40), nullable=False),
    Column("attempt_id", String(40), nullable=False),
    Column("receipt_key", Text, nullable=False),
    Column("files", JSON, nullable=False),
    Column("result", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("approved_us", BigInteger),  # since then a gate lets it pass
)

films = Table(
    "films",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("show", String(64), nullable=False),
    Column("job_id", String(40), ForeignKey("jobs.id"), nullable=False),  # of its newest revision
    Column("created_us", BigInteger, nullable=False),
    Column("deleted_us", BigInteger),
)
Index("ix_films_tenant_created", films.c.tenant, films.c.created_us)

revisions = Table(
    "revisions",
    metadata,
    Column("job_id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("film_id", String(40), ForeignKey("films.id"), nullable=False),
    Column("number", Integer, nullable=False),  # from 1
    Column("reason", String(64), nullable=False),  # what a person did: "created", "script", "circled sh010.t2"
    UniqueConstraint("film_id", "number"),
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("scope", String(16), nullable=False),  # tenant | show | film
    Column("subject", String(64), nullable=False),  # a show's name, a film's id; empty: the tenant
    Column("cap_nano", BigInteger, nullable=False),
    Column("period", String(16), nullable=False),  # total | month
    Column("thresholds", JSON, nullable=False),
    Column("spent_nano", BigInteger, nullable=False),  # the cost lines of its scope since `from_us`
    Column("reserved_nano", BigInteger, nullable=False),  # by the attempts that run under it
    Column("fired", JSON, nullable=False),  # the thresholds that were told in this period
    Column("acting", String(16)),  # the gravest action of those
    Column("from_us", BigInteger, nullable=False),
    Column("until_us", BigInteger),
    Column("created_us", BigInteger, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    UniqueConstraint("tenant", "scope", "subject"),
)

budget_events = Table(
    "budget_events",
    metadata,
    Column("budget_id", String(40), primary_key=True),  # no foreign key: the log outlives the budget
    Column("seq", Integer, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(48), nullable=False),  # budget.set | reached | stop | turn | remove
    Column("data", JSON, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("show", String(64)),  # a key that is bound to a show sees nothing else
    Column("name", String(128), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("prefix", String(16), nullable=False),  # the beginning of the secret, for people
    Column("hash", String(64), nullable=False, unique=True),
    Column("old_hash", String(64), unique=True),  # of the secret before the last rotation
    Column("old_until_us", BigInteger),
    Column("requests_per_minute", Integer),
    Column("in_flight_s", Float),  # predicted accelerator-seconds of its tenant's open work, at most
    Column("tokens_per_minute", Integer),
    Column("paced_us", BigInteger, nullable=False, server_default=text("0")),  # when its requests so far are paid off
    Column("tokens_paced_us", BigInteger, nullable=False, server_default=text("0")),  # the same of its tokens
    Column("created_us", BigInteger, nullable=False),
    Column("used_us", BigInteger),
    Column("rotated_us", BigInteger),
    Column("revoked_us", BigInteger),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("show", String(64)),  # it hears of the jobs of this show alone
    Column("name", String(128), nullable=False),
    Column("url", Text, nullable=False),
    Column("topics", JSON, nullable=False),  # what it wants to hear of: "recipe state"
    Column("secret", String(64), nullable=False),  # as it is: what is sent is signed with it
    Column("old_secret", String(64)),
    Column("old_until_us", BigInteger),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("disabled_us", BigInteger),
    Column("disabled_reason", Text),
)
Index("ix_webhook_endpoints_tenant", webhook_endpoints.c.tenant)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column(
        "endpoint_id", String(40), primary_key=True
    ),  # deleted with it, but no foreign key: a job's end waits for none
    Column("id", String(40), primary_key=True),  # of the event: the same at every endpoint, at every try
    Column("topic", String(160), nullable=False),
    Column("job_id", String(40), nullable=False),
    Column("progress", String(16), nullable=False),  # due | delivered | failed
    Column("next_us", BigInteger, nullable=False),  # when it may be claimed: its next try, or the end of a lease
    Column("epoch", BigInteger, nullable=False),  # grows with every claim
    Column("num_tries", Integer, nullable=False),
    Column("tries", JSON, nullable=False),  # the newest last
    Column("created_us", BigInteger, nullable=False),
)
Index("ix_webhook_deliveries_due", webhook_deliveries.c.progress, webhook_deliveries.c.next_us)
Index("ix_webhook_deliveries_log", webhook_deliveries.c.endpoint_id, webhook_deliveries.c.created_us)

token_minutes = Table(
    "token_minutes",
    metadata,
    Column("key_id", String(40), primary_key=True),
    Column("show", String(64), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("price_class", String(32), primary_key=True),
    Column("minute_us", BigInteger, primary_key=True, autoincrement=False),  # when it began
    Column("source", String(40), primary_key=True),  # the process that counted: it alone writes the row
    Column("tenant", String(64), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("billed_prompt_tokens", BigInteger, nullable=False, server_default=text("0")),  # of which there are lines
    Column("billed_completion_tokens", BigInteger, nullable=False, server_default=text("0")),
)
Index("ix_token_minutes_tenant", token_minutes.c.tenant, token_minutes.c.minute_us)
UNBILLED_TOKENS = or_(
    token_minutes.c.prompt_tokens > token_minutes.c.billed_prompt_tokens,
    token_minutes.c.completion_tokens > token_minutes.c.billed_completion_tokens,
)
Index(
    "ix_token_minutes_unbilled",
    token_minutes.c.minute_us,
    sqlite_where=UNBILLED_TOKENS,
    postgresql_where=UNBILLED_TOKENS,
)

egress_minutes = Table(
    "egress_minutes",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("show", String(64), primary_key=True),
    Column("minute_us", BigInteger, primary_key=True, autoincrement=False),  # when it began
    Column("source", String(40), primary_key=True),  # the process that counted: it alone writes the row
    Column("num_bytes", BigInteger, nullable=False),
    Column("billed_bytes", BigInteger, nullable=False, server_default=text("0")),  # of which there are lines
)
UNBILLED_EGRESS = egress_minutes.c.num_bytes > egress_minutes.c.billed_bytes
Index(
    "ix_egress_minutes_unbilled",
    egress_minutes.c.minute_us,
    sqlite_where=UNBILLED_EGRESS,
    postgresql_where=UNBILLED_EGRESS,
)

storage_meters = Table(
    "storage_meters",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("show", String(64), primary_key=True),
    Column("since_us", BigInteger, nullable=False),  # up to here what is kept has been counted
    Column("mib_seconds", BigInteger, nullable=False),  # so far
    Column("rest", BigInteger, nullable=False),  # byte-microseconds, less than a MiB-second
    Column("billed_mib_seconds", BigInteger, nullable=False),
    Column("billed_us", BigInteger, nullable=False),  # up to here there are lines
)

chores = Table(
    "chores",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("tried_us", BigInteger, nullable=False),
    Column("done_us", BigInteger),  # when it last succeeded
    Column("error", Text),  # of the last try, if that failed
)
