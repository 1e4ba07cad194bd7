// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// This file holds all that only PostgreSQL knows.
//
// Connections may be direct or through a pooler of sessions. Through one of transactions everything but Listen works too,
// if it supports prepared statements or the URL says default_query_exec_mode=exec; what settle sets must then be set for
// the role (ALTER ROLE … SET …), since such a pooler mixes sessions.

// postgresql is the dialect of a PostgreSQL database, which several replicas may use at once.
type postgresql struct {
	config  *pgx.ConnConfig
	where   string // without the password
	sslmode string
	max     int           // connections
	life    atomic.Uint64 // counts how often connections of before were given up
	// timeline is the newest that a renewal of the lease has seen: zero until then.
	timeline atomic.Int64
}

const (
	defaultConnections = 16
	leastConnections   = 8
	sideConnections    = 3 // the lease among them, which must not wait behind others
	connectTimeout     = 5 * time.Second
	silenceAtMost      = 10 * time.Second
	// connectionLife lets a pool leave a server to which a name does not point any more.
	connectionLife = 30 * time.Minute

	// channel is where a new version is announced; the schema's trigger has it, too.
	channel = "certbound"
)

// The statements that PostgreSQL has for itself. dbNow is the database's clock as a column.
const (
	dbNow = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`
	txNow = `(extract(epoch FROM now()) * 1000000)::bigint` // when the transaction began

	// settleSession makes a connection safe whatever the role's defaults are: nobody waits long for a lock, no open
	// transaction holds one for long, a commit waits for the disk and for the standbys that the server names, and a warning
	// that it did not wait is heard.
	settleSession = `SELECT set_config('lock_timeout', '1s', false), set_config('idle_in_transaction_session_timeout', '5s', false),
		set_config('statement_timeout', '15s', false), set_config('client_min_messages', 'warning', false),
		set_config('default_transaction_isolation', 'read committed', false), ` + waitForStandbys + `, false)`
	waitForStandbys = `set_config('synchronous_commit',
		CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END`

	// takeTurn makes transactions that decide follow each other, as on SQLite: each sees all that the former ones have
	// committed. It sets once more what a pooler of transactions may have lost.
	takeTurn = `SELECT set_config('lock_timeout', '1s', true), set_config('idle_in_transaction_session_timeout', '5s', true),
		set_config('client_min_messages', 'warning', true), ` + waitForStandbys + `, true), pg_advisory_xact_lock($1)`

	// relax is for the schema's changes: another replica's may take a while, and so may this one's.
	relax = `SELECT set_config('lock_timeout', '60s', true), set_config('statement_timeout', '0', true),
		set_config('idle_in_transaction_session_timeout', '60s', true), pg_advisory_xact_lock($1)`

	// createMark is schema_version with a mark by which a table of that name that is not ours is known.
	createMark = `CREATE TABLE schema_version (version INTEGER NOT NULL, oldest INTEGER NOT NULL, application BIGINT NOT NULL)`
	insertMark = `INSERT INTO schema_version (version, oldest, application) VALUES (0, 1, $1)`
	queryMark  = `SELECT version, oldest, application FROM schema_version`

	// queryTables says what is in the current schema, apart from what extensions have put there.
	queryTables = `SELECT coalesce(current_schema(), ''), current_setting('server_encoding'),
		count(c.relname), count(c.relname) FILTER (WHERE c.relname = 'schema_version')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema()
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
			AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e')`

	beginLeaseNow = `INSERT INTO leases (` + leaseColumns + `) SELECT $1, $2, 0, $3, $4, $5, $6, ` + txNow + `, ` + txNow + ` WHERE ` + servable + takeOver
	// renewLeaseNow is one write that commits once, and answers who the database is. The timeline is that of the end of the
	// log: a checkpoint would tell it too late after a promotion.
	renewLeaseNow = `WITH head AS (UPDATE journals SET head_seq = $4, head_chain = $5, head_at = ` + dbNow + `
			WHERE replica = $1 AND incarnation = $2 AND head_seq < $4)
		UPDATE leases SET renewals = renewals + 1, applied = $3, renewed_at = ` + dbNow + `
		WHERE replica = $1 AND incarnation = $2 AND ` + servable + `
		RETURNING (SELECT version FROM state WHERE id = 1), ` + dbNow + `, ` + identity
	witnessedNow = `SELECT ` + isWitnessed + `, EXISTS (SELECT 1 FROM leases WHERE replica <> $1 AND renewed_at > ` + dbNow + ` - $3)`
	identity     = `(SELECT system_identifier::text FROM pg_control_system()), ` + logFile + `,
		(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint`

	logFile = `pg_walfile_name(pg_current_wal_insert_lsn())`

	queryDurability = `SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names')`

	forgetAuditKeys = `VACUUM audit_days, audit_subjects, ticket_keys`
)

// The classes and codes of PostgreSQL's errors that are told apart (PostgreSQL, Appendix A).
const (
	codeUniqueViolation  = "23505"
	codeUndefinedColumn  = "42703"
	codeUndefinedTable   = "42P01"
	codeNoPrivilege      = "42501"
	codeNoDatabase       = "3D000"
	codeDiskFull         = "53100"
	codeLockNotAvailable = "55P03"
	codeDeadlock         = "40P01"
	codeWarning          = "01000"
	codeAdminShutdown    = "57P01"
)

// newPostgres reads the URL. Its error quotes nothing of it.
func newPostgres(cfg Config) (*postgresql, error) {
	if !strings.HasPrefix(cfg.URL, "postgres://") && !strings.HasPrefix(cfg.URL, "postgresql://") {
		return nil, errors.New("open the database: its URL is not one like postgres://user:password@host:port/name")
	}
	config, err := pgx.ParseConfig(cfg.URL)
	if err != nil {
		why := "check its host, port and parameters"
		if file, ok := errors.AsType[*fs.PathError](err); ok { // of a certificate or key
			why = file.Error()
		}
		return nil, fmt.Errorf("open the database: its URL, which may hold a password and is not shown, cannot be used: %s", why)
	}
	if config.ConnectTimeout <= 0 || config.ConnectTimeout > connectTimeout {
		config.ConnectTimeout = connectTimeout
	}
	// A peer that is gone is noticed within seconds.
	dialer := &net.Dialer{Control: silence, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	config.DialFunc = dialer.DialContext
	config.OnNotice = noteDoubt
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "certbound"
	}
	most := max(cmp.Or(cfg.MaxConnections, defaultConnections), leastConnections)
	p := &postgresql{config: config, where: placeOf(config), sslmode: sslmodeOf(cfg.URL), max: most}
	config.ValidateConnect = p.validate
	return p, nil
}

// validate refuses servers that a fresh connection must not be to; where the URL names several, the next is tried. What is
// only read must come from the primary too: a standby may not know yet what was revoked. Nor does a former primary know it,
// which nobody has ended: it still takes writes, as far as it knows, and a name or a list of hosts may lead back to it.
func (p *postgresql) validate(ctx context.Context, c *pgconn.PgConn) error {
	if err := pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, c); err != nil {
		return err
	}
	newest := p.timeline.Load()
	if newest == 0 {
		return nil
	}
	result := c.ExecParams(ctx, "SELECT "+logFile, nil, nil, nil, nil).Read()
	if result.Err != nil {
		return result.Err
	}
	if len(result.Rows) != 1 || len(result.Rows[0]) != 1 {
		return errors.New("the server does not say on which timeline it is")
	}
	timeline, err := timelineOf(string(result.Rows[0][0]))
	if err == nil && timeline < newest {
		err = fmt.Errorf("this is a former primary: it is on timeline %d, another server on %d", timeline, newest)
	}
	return err
}

// timelineOf reads the name of a file of the log, which begins with its timeline: eight hexadecimal digits.
func timelineOf(file string) (int64, error) {
	if len(file) < 8 {
		return 0, fmt.Errorf("the database's log is at %q", file)
	}
	return strconv.ParseInt(file[:8], 16, 64)
}

// placeOf names a database without its password.
func placeOf(config *pgx.ConnConfig) string {
	hosts := []string{net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))}
	for _, f := range config.Fallbacks { // a host has one with TLS and one without, perhaps
		if host := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return (&url.URL{Scheme: "postgres", User: url.User(config.User), Host: strings.Join(hosts, ","), Path: "/" + config.Database}).String()
}

// doubt names a host that is another machine, and to which a connection may be made whose other end was not verified.
func (p *postgresql) doubt() string {
	if p.sslmode == "verify-full" {
		return ""
	}
	hosts := []string{p.config.Host}
	for _, f := range p.config.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, host := range hosts {
		ip := net.ParseIP(host)
		if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" || ip != nil && ip.IsLoopback() {
			continue
		}
		return fmt.Sprintf("its URL does not say sslmode=verify-full but %s: the server %s is not verified; sslrootcert=FILE names its CA",
			cmp.Or(p.sslmode, "nothing, which means prefer: TLS if the server likes"), host)
	}
	return ""
}

// sslmodeOf is the parameter sslmode of a URL, empty when it is not given, and an unknown one when it cannot be told.
func sslmodeOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "unknown"
	}
	return cmp.Or(u.Query().Get("sslmode"), os.Getenv("PGSSLMODE"))
}

// unreachable is the hint for a server that has given no connection.
func unreachable(place string, err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case strings.HasPrefix(e.Code, "28"):
			return "the server of " + place + " refuses the login: look at the user and the password, in the URL, in PGPASSWORD or in ~/.pgpass, and at its pg_hba.conf"
		case e.Code == codeNoDatabase:
			return "the server of " + place + " has no such database: make it there with CREATE DATABASE, for the user of the URL"
		}
		return "the server of " + place + " does not take this now: look at its log, then run it again"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the certificate of the server of " + place + " is not trusted: sslrootcert in the URL names the file of its CA, and the host is to be one that it names"
	}
	return "the server of " + place + " cannot be reached: look whether it runs, and at host, port and parameters of the URL; nobody waits for it at " +
		"the start, so run it again then"
}

func (p *postgresql) name() string  { return "postgres" }
func (p *postgresql) place() string { return p.where }

// limit is longer than any statement may take, and shorter than anybody waits.
func (p *postgresql) limit() time.Duration { return 20 * time.Second }

func (p *postgresql) open(n int, options ...stdlib.OptionOpenDB) *sql.DB {
	db := stdlib.OpenDB(*p.config, append(options, stdlib.OptionBeforeConnect(p.mark), stdlib.OptionAfterConnect(settle),
		stdlib.OptionResetSession(p.sameLife))...)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	db.SetConnMaxLifetime(connectionLife)
	return db
}

func (p *postgresql) connect() (pools, error) {
	// A connection that was lost since it was last used must not leave it unknown whether a write was made: each is tried
	// before. Others are when they were idle for a second.
	try := stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return true })
	return pools{
		writer: p.open(1, try), side: p.open(sideConnections, try), shared: p.open(callers),
		reader: p.open(p.max - 1 - sideConnections - callers - 1), // one listens
	}, nil
}

// lifeKey is where a connection has the number of the database's life in which it was begun.
const lifeKey = "certbound.life"

// mark notes in which life a connection is begun: before that, since the server may change while it is made.
func (p *postgresql) mark(_ context.Context, c *pgx.ConnConfig) error {
	life := p.life.Load()
	c.AfterConnect = func(_ context.Context, made *pgconn.PgConn) error {
		made.CustomData()[lifeKey] = life
		return nil
	}
	return nil
}

// sameLife gives up a connection of a former life of the database, before it is used once more.
func (p *postgresql) sameLife(_ context.Context, c *pgx.Conn) error {
	if c.PgConn().CustomData()[lifeKey] != p.life.Load() {
		return driver.ErrBadConn
	}
	return nil
}

func (p *postgresql) reconnect() { p.life.Add(1) }

// doubtKey is where a connection notes that the server has warned.
const doubtKey = "certbound.doubt"

// settle prepares a fresh connection.
func settle(ctx context.Context, c *pgx.Conn) error {
	c.PgConn().CustomData()[doubtKey] = new(atomic.Bool)
	_, err := c.Exec(ctx, settleSession)
	return err
}

// noteDoubt notes the warning by which the server says that it has committed, but did not wait for its standbys. Its words
// are in the server's language; that of our own statements raises no other warning of this code.
func noteDoubt(c *pgconn.PgConn, n *pgconn.Notice) {
	if n.Code != codeWarning && n.Code != codeAdminShutdown {
		return
	}
	if doubt, ok := c.CustomData()[doubtKey].(*atomic.Bool); ok {
		doubt.Store(true)
	}
}

func (p *postgresql) commit(conn *sql.Conn, transaction bool, write func() error) error {
	var pg *pgx.Conn
	if err := conn.Raw(func(c any) error {
		pg = c.(*stdlib.Conn).Conn()
		return nil
	}); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	doubt, ok := pg.PgConn().CustomData()[doubtKey].(*atomic.Bool)
	if !ok {
		return errors.New("a connection that was not prepared")
	}
	doubt.Store(false)
	err := write()
	switch {
	case doubt.Load():
		return errors.Join(fmt.Errorf("%w: the server did not wait for its standbys", ErrUnknown), err)
	case err == nil:
		return nil
	case transaction, pg.IsClosed() && !refused(err):
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return err
}

// refused reports whether a statement on its own that failed with err, and with it the connection, was surely not
// committed: it was not sent, or the server said so.
func refused(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Severity == "ERROR" || e.SeverityUnlocalized == "ERROR"
	}
	return pgconn.SafeToRetry(err)
}

func (p *postgresql) turn(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, takeTurn, int64(applicationID))
	return err
}

// again is true for locks that did not come in time.
func (p *postgresql) again(err error) bool {
	return hasCode(err, codeLockNotAvailable, codeDeadlock) && !errors.Is(err, ErrUnknown)
}

// forget lets the server reuse the place of what was deleted. Older copies stay in its log until that is recycled, and in
// whatever was backed up: what is deleted here was sealed under the key-encryption key.
func (p *postgresql) forget(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, forgetAuditKeys)
	return err
}

func hasCode(err error, codes ...string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, e.Code)
}

func (p *postgresql) isUnique(err error) bool { return hasCode(err, codeUniqueViolation) }

func (p *postgresql) judge(err error) error {
	switch e, isPG := errors.AsType[*pgconn.PgError](err); {
	case isPG && e.Code == codeDiskFull:
		return fmt.Errorf("%w: %w", ErrFull, err)
	case isPG && strings.HasPrefix(e.Code, "XX00") && e.Code != "XX000":
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, ErrUnknown) || errors.Is(err, ErrUnavailable):
		return err
	case Unavailable(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// Unavailable reports whether a method of a Store failed because the database could not be reached, or did not answer in
// time: to be answered with "try again later". It is for those that read as well, whose errors have no sentinel for it.
func Unavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		class := e.Code[:min(2, len(e.Code))]
		switch {
		case class == "08", class == "53", class == "57", strings.HasPrefix(e.Code, "25P"), e.Code == "25006",
			e.Code == codeLockNotAvailable, e.Code == codeDeadlock:
			return true
		}
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded)
}

func (p *postgresql) exists(ctx context.Context) (bool, error) {
	db := p.open(1)
	defer db.Close()
	found, err := p.inspect(ctx, db)
	return found.version > 0, err
}

// inspect judges what is in the database's current schema, without writing: the zero value says that there is nothing.
func (p *postgresql) inspect(ctx context.Context, q conn) (found schema, err error) {
	var current, encoding string
	var tables, marks int
	if err := q.QueryRowContext(ctx, queryTables).Scan(&current, &encoding, &tables, &marks); err != nil {
		return schema{}, err
	}
	switch {
	case current == "":
		return schema{}, errors.New("no schema of the role's search_path is there: create one, or ALTER ROLE … SET search_path")
	case encoding != "UTF8":
		return schema{}, fmt.Errorf("its encoding is %s: create one with UTF8", encoding)
	case tables == 0:
		return schema{}, nil
	case marks == 0:
		return schema{}, fmt.Errorf("%w: its schema %q has tables of another application", ErrForeign, current)
	}
	var application int64
	err = q.QueryRowContext(ctx, queryMark).Scan(&found.version, &found.oldest, &application)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return schema{}, fmt.Errorf("%w: it has no schema version", ErrDamaged)
	case hasCode(err, codeUndefinedColumn) || err == nil && application != applicationID:
		return schema{}, fmt.Errorf("%w: the table schema_version in its schema %q is another application's", ErrForeign, current)
	}
	return found, err
}

// prepare makes the tables when there are none, and checks them. Two replicas may do so at once.
func (p *postgresql) prepare(ctx context.Context, s *Store, steps []step) error {
	db := p.open(1)
	defer db.Close()
	found, err := p.inspect(ctx, db)
	if err != nil {
		return err
	}
	if found.version == 0 {
		s.logger.InfoContext(ctx, "making the tables of a new database", "database", p.where)
		if err := p.create(ctx, s, db, steps); err != nil {
			return err
		}
	}
	if err := p.checkSchema(ctx, s, db, steps); err != nil {
		return err
	}
	return p.checkRights(ctx, db)
}

func (p *postgresql) checkSchema(ctx context.Context, s *Store, q conn, steps []step) error {
	found, err := p.inspect(ctx, q)
	if err != nil {
		return err
	}
	if err := found.check(len(steps)); err != nil {
		return err
	}
	err = s.checkUse(ctx, q)
	if hasCode(err, codeUndefinedTable, codeUndefinedColumn) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// checkRights asks what each renewal of a lease will ask.
func (p *postgresql) checkRights(ctx context.Context, q conn) error {
	var system, file string
	var started int64
	err := q.QueryRowContext(ctx, "SELECT "+identity).Scan(&system, &file, &started)
	if hasCode(err, codeNoPrivilege) {
		return fmt.Errorf("the role %q may not ask which database it is: GRANT EXECUTE ON FUNCTION pg_control_system(), "+
			"pg_walfile_name(pg_lsn), pg_current_wal_insert_lsn() TO it: %w", p.config.User, err)
	}
	return err
}

// create makes all tables in one transaction, unless another replica was faster.
func (p *postgresql) create(ctx context.Context, s *Store, db *sql.DB, steps []step) error {
	return p.alter(ctx, db, func(tx *sql.Tx) error {
		found, err := p.inspect(ctx, tx)
		if err != nil || found.version > 0 {
			return err
		}
		if _, err := tx.ExecContext(ctx, createMark); err != nil {
			if hasCode(err, codeNoPrivilege) {
				err = fmt.Errorf("the role %q may not make tables: GRANT CREATE ON SCHEMA … TO it, or make it the schema's owner: %w",
					p.config.User, err)
			}
			return err
		}
		if _, err := tx.ExecContext(ctx, insertMark, int64(applicationID)); err != nil {
			return err
		}
		if err := p.applySteps(ctx, tx, found, steps); err != nil {
			return err
		}
		check, err := s.kekCheck()
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, insertState, check)
		return err
	})
}

func (p *postgresql) upgrade(ctx context.Context, db *sql.DB, steps []step) error {
	found, err := p.inspect(ctx, db)
	if err != nil || found.version >= len(steps) {
		return err
	}
	return p.alter(ctx, db, func(tx *sql.Tx) error {
		found, err := p.inspect(ctx, tx)
		if err != nil {
			return err
		}
		return p.applySteps(ctx, tx, found, steps)
	})
}

func (p *postgresql) applySteps(ctx context.Context, tx *sql.Tx, found schema, steps []step) error {
	for i := found.version; i < len(steps); i++ {
		if err := applyStep(ctx, tx, i+1, steps[i]); err != nil {
			return err
		}
	}
	return nil
}

// alter runs f in a transaction while no other replica alters the schema or decides anything.
func (p *postgresql) alter(ctx context.Context, db *sql.DB, f func(*sql.Tx) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{})
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, relax, int64(applicationID)); err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return err
	}
	return p.commit(conn, true, tx.Commit)
}

func (p *postgresql) beginLease(ctx context.Context, w conn, l Lease, _ time.Time) (sql.Result, error) {
	return w.ExecContext(ctx, beginLeaseNow, l.Replica, l.Incarnation, l.Applied, l.Program, l.Address, l.MTLSURL)
}

func (p *postgresql) renewLease(ctx context.Context, w conn, r LeaseRenewal, _ time.Time) (out Renewed, err error) {
	var file string
	err = w.QueryRowContext(ctx, renewLeaseNow, r.Replica, r.Incarnation, r.Applied, r.HeadSeq, digest(r.HeadChain)).
		Scan(&out.Version, (*moment)(&out.Now), &out.System.System, &file, (*moment)(&out.System.StartedAt))
	if err != nil {
		return Renewed{}, err
	}
	if out.System.Timeline, err = timelineOf(file); err != nil {
		return Renewed{}, err
	}
	for newest := p.timeline.Load(); newest < out.System.Timeline; newest = p.timeline.Load() {
		p.timeline.CompareAndSwap(newest, out.System.Timeline)
	}
	return out, nil
}

func (p *postgresql) witnessed(ctx context.Context, w conn, replica string, incarnation uint64, within time.Duration, _ time.Time) (is, others bool, err error) {
	err = w.QueryRowContext(ctx, witnessedNow, replica, incarnation, within.Microseconds()).Scan(&is, &others)
	return is, others, err
}

func (p *postgresql) durability(ctx context.Context, w conn) (Durability, error) {
	var waits, standbys string
	if err := w.QueryRowContext(ctx, queryDurability).Scan(&waits, &standbys); err != nil {
		return SingleNode, err
	}
	if (waits == "on" || waits == "remote_apply") && strings.TrimSpace(standbys) != "" {
		return Quorum, nil
	}
	return SingleNode, nil
}
