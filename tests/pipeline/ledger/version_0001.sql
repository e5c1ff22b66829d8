BEGIN TRANSACTION;
CREATE TABLE alias (
	name TEXT NOT NULL, 
	checkpoint TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	CONSTRAINT pk_alias PRIMARY KEY (name), 
	CONSTRAINT fk_alias_checkpoint FOREIGN KEY(checkpoint) REFERENCES checkpoint (digest)
);
INSERT INTO "alias" VALUES('champion','k1',1);
CREATE TABLE checkpoint (
	digest TEXT NOT NULL, 
	run_id TEXT NOT NULL, 
	step BIGINT NOT NULL, 
	path TEXT NOT NULL, 
	"commit" TEXT NOT NULL, 
	recorded_at DOUBLE NOT NULL, 
	CONSTRAINT pk_checkpoint PRIMARY KEY (digest), 
	CONSTRAINT fk_checkpoint_run_id FOREIGN KEY(run_id) REFERENCES run (run_id)
);
INSERT INTO "checkpoint" VALUES('k1','r1',8,'/runs/1/checkpoints/step_000000008','m1',3.0);
CREATE TABLE delivery (
	uri TEXT NOT NULL, 
	listing TEXT NOT NULL, 
	source_id TEXT, 
	stable_since DOUBLE NOT NULL, 
	dump_id TEXT, 
	CONSTRAINT pk_delivery PRIMARY KEY (uri, listing), 
	CONSTRAINT fk_delivery_dump_id FOREIGN KEY(dump_id) REFERENCES dump (dump_id), 
	CONSTRAINT fk_delivery_source_id FOREIGN KEY(source_id) REFERENCES source (source_id)
);
INSERT INTO "delivery" VALUES('s3://bucket/1','l1','web',1.0,'d1');
CREATE TABLE dump (
	dump_id TEXT NOT NULL, 
	source_id TEXT, 
	seq BIGINT, 
	admit_no BIGINT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT, 
	parent_id TEXT, 
	files BIGINT NOT NULL, 
	bytes BIGINT NOT NULL, 
	sealed_at DOUBLE NOT NULL, 
	CONSTRAINT pk_dump PRIMARY KEY (dump_id), 
	CONSTRAINT ck_dump_state CHECK (state IN ('sealed', 'verified', 'curated', 'trained', 'evaluated', 'promoted', 'held', 'quarantined', 'drifted', 'skipped')), 
	CONSTRAINT fk_dump_parent_id FOREIGN KEY(parent_id) REFERENCES dump (dump_id), 
	CONSTRAINT fk_dump_source_id FOREIGN KEY(source_id) REFERENCES source (source_id), 
	CONSTRAINT uq_dump_admit_no UNIQUE (admit_no), 
	CONSTRAINT uq_dump_source_id UNIQUE (source_id, seq)
);
INSERT INTO "dump" VALUES('d1','web',1,1,'promoted',NULL,NULL,3,300,1.5);
CREATE TABLE evaluation (
	checkpoint TEXT NOT NULL, 
	store_digest TEXT NOT NULL, 
	complete INTEGER NOT NULL, 
	scores JSON NOT NULL, 
	file TEXT NOT NULL, 
	recorded_at DOUBLE NOT NULL, 
	CONSTRAINT pk_evaluation PRIMARY KEY (checkpoint, store_digest), 
	CONSTRAINT fk_evaluation_checkpoint FOREIGN KEY(checkpoint) REFERENCES checkpoint (digest)
);
INSERT INTO "evaluation" VALUES('k1','st1',1,'{"knn_top1": 0.5}','/runs/1/evaluation.json',4.0);
CREATE TABLE event (
	event_id INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	action TEXT NOT NULL, 
	name TEXT NOT NULL, 
	"before" TEXT, 
	checkpoint TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	gate JSON, 
	CONSTRAINT pk_event PRIMARY KEY (event_id), 
	CONSTRAINT ck_event_action CHECK (action IN ('promoted', 'forced', 'held', 'rolled back')), 
	CONSTRAINT ck_event_reason CHECK (length(reason) > 0), 
	CONSTRAINT fk_event_before FOREIGN KEY("before") REFERENCES checkpoint (digest), 
	CONSTRAINT fk_event_checkpoint FOREIGN KEY(checkpoint) REFERENCES checkpoint (digest)
);
INSERT INTO "event" VALUES(1,5.0,'promoted','champion',NULL,'k1','me@here','the first','[]');
CREATE TABLE feral_ledger_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT feral_ledger_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "feral_ledger_version" VALUES('0001');
CREATE TABLE run (
	run_id TEXT NOT NULL, 
	path TEXT NOT NULL, 
	work_id TEXT, 
	base TEXT, 
	experiment JSON NOT NULL, 
	versions JSON NOT NULL, 
	seed BIGINT NOT NULL, 
	recorded_at DOUBLE NOT NULL, 
	CONSTRAINT pk_run PRIMARY KEY (run_id), 
	CONSTRAINT fk_run_work_id FOREIGN KEY(work_id) REFERENCES work (work_id)
);
INSERT INTO "run" VALUES('r1','/runs/1','w1',NULL,'{"data": {}}','{"feral": "0.1.0"}',0,2.0);
CREATE TABLE run_input (
	run_id TEXT NOT NULL, 
	selection_id TEXT NOT NULL, 
	role TEXT NOT NULL, 
	planned BIGINT NOT NULL, 
	consumed BIGINT NOT NULL, 
	CONSTRAINT pk_run_input PRIMARY KEY (run_id, selection_id, role), 
	CONSTRAINT ck_run_input_role CHECK (role IN ('new', 'replay')), 
	CONSTRAINT fk_run_input_run_id FOREIGN KEY(run_id) REFERENCES run (run_id), 
	CONSTRAINT fk_run_input_selection_id FOREIGN KEY(selection_id) REFERENCES selection (selection_id)
);
INSERT INTO "run_input" VALUES('r1','s1','new',200,200);
CREATE TABLE selection (
	selection_id TEXT NOT NULL, 
	dump_id TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	store TEXT NOT NULL, 
	name TEXT NOT NULL, 
	samples BIGINT NOT NULL, 
	CONSTRAINT pk_selection PRIMARY KEY (selection_id), 
	CONSTRAINT fk_selection_dump_id FOREIGN KEY(dump_id) REFERENCES dump (dump_id)
);
INSERT INTO "selection" VALUES('s1','d1','s','/stores/1','default',100);
CREATE TABLE source (
	source_id TEXT NOT NULL, 
	root TEXT NOT NULL, 
	seal_rule TEXT NOT NULL, 
	quota DOUBLE, 
	CONSTRAINT pk_source PRIMARY KEY (source_id)
);
INSERT INTO "source" VALUES('web','s3://bucket','marker',0.5);
CREATE TABLE work (
	work_id TEXT NOT NULL, 
	dump_id TEXT NOT NULL, 
	stage TEXT NOT NULL, 
	config_digest TEXT NOT NULL, 
	state TEXT NOT NULL, 
	owner TEXT, 
	fence BIGINT NOT NULL, 
	attempt INTEGER NOT NULL, 
	expires_at DOUBLE, 
	output TEXT, 
	CONSTRAINT pk_work PRIMARY KEY (work_id), 
	CONSTRAINT ck_work_state CHECK (state IN ('waiting', 'ready', 'running', 'done', 'failed')), 
	CONSTRAINT fk_work_dump_id FOREIGN KEY(dump_id) REFERENCES dump (dump_id), 
	CONSTRAINT uq_work_dump_id UNIQUE (dump_id, stage, config_digest)
);
INSERT INTO "work" VALUES('w1','d1','train','c1','done',NULL,1,1,NULL,'r1');
CREATE INDEX ix_selection_dump_id ON selection (dump_id);
CREATE INDEX ix_run_base ON run (base);
CREATE INDEX ix_checkpoint_run_id ON checkpoint (run_id);
CREATE INDEX ix_run_input_selection_id ON run_input (selection_id);
CREATE INDEX ix_event_name ON event (name);
COMMIT;
