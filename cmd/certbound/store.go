// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/move"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/restore"
	"github.com/certbound/certbound/cmd/internal/server"
	"github.com/certbound/certbound/cmd/internal/store"
)

func (c *cli) storeCommand() *cobra.Command {
	return group("store", "Move the database, back it up, or restore it",
		c.storeMigrateCommand(), c.storeCopyCommand(), c.storeBackupCommand(), c.storeRestoreCommand())
}

// databaseFlags name the database that a verb is about, as serve's do.
func databaseFlags(cmd *cobra.Command) *configFlags {
	f := &configFlags{values: make(map[string]*string)}
	flags := cmd.Flags()
	flags.StringVar(&f.file, "config", "", "configuration file of the service (else CERTBOUND_CONFIG)")
	f.values["data"] = flags.String("data", "", "data folder of the service (default ./certbound-data)")
	f.values["database"] = flags.String("database", "", "its database: postgres://user@host/name (else CERTBOUND_DATABASE; default DATA/certbound.db)")
	return f
}

// database is one that a verb works on.
type database struct {
	cfg  config.Config
	at   store.Config
	lock *store.FolderLock
}

// need is what a verb needs of the database.
type need int

const (
	reads need = iota // it is there; who serves on it goes on
	alone             // it is there, and nobody else uses the data folder
	fills             // nobody else uses the data folder; the database may be missing
)

// openDatabase reads the configuration, and takes the lock of the data folder where somebody could serve with it.
func (c *cli) openDatabase(cmd *cobra.Command, flags *configFlags, what need) (*database, error) {
	cfg, err := flags.load(c, cmd)
	if err != nil {
		return nil, err
	}
	d := &database{cfg: cfg}
	if _, own := server.KEKOf(cfg); own || what != reads || !cfg.PostgreSQL() {
		if err := checkData(cfg.Data, what); err != nil { // Lock would make it
			return nil, err
		}
	}
	if what != reads {
		d.lock, err = store.Lock(cfg.Data)
		if errors.Is(err, store.ErrLocked) {
			return nil, failf("stop the service that uses it, then run this again", "%v", err)
		}
		if err != nil {
			return nil, err
		}
	}
	if d.at, err = server.DatabaseConfig(cfg); err != nil {
		if _, is := errors.AsType[*store.KEKError](err); is && what != fills && d.at.URL == "" { // of what is not there no key is missing
			if found, lookErr := store.Exists(cmd.Context(), d.at); lookErr == nil && !found {
				err = d.missing()
			}
		}
		return nil, errors.Join(err, d.close())
	}
	server.WarnOfDatabase(cmd.Context(), logger(cfg.Log, c.stderr), d.at)
	return d, nil
}

// checkData refuses a data folder that is none.
func checkData(dir string, what need) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && what == fills:
		return failf("name the data folder of the service with --data, or make one with the service's key-encryption key in it, as the file kek",
			"there is no data folder %s", dir)
	case errors.Is(err, fs.ErrNotExist):
		return failf("name the data folder of the service with --data", "there is no data folder %s", dir)
	case errors.Is(err, syscall.ENOTDIR) || err == nil && !info.IsDir():
		hint := "name the data folder of the service with --data"
		if filepath.Base(dir) == store.FileName {
			hint = "name the folder that it lies in: --data " + profile.ShellWord(filepath.Dir(dir))
		}
		return failf(hint, "the data folder %s is no folder", dir)
	}
	return err
}

func (d *database) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Leave()
}

func (d *database) place() string { return store.Place(d.at) }

// read opens the database for reading: nobody who serves on it is disturbed.
func (d *database) read(ctx context.Context) (*store.Store, error) {
	at := d.at
	at.ReadOnly = true
	db, err := store.Open(ctx, at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.missing()
	}
	return db, err
}

func (d *database) missing() error {
	return failf("name the data folder of the service with --data, or its database with --database", "there is no database %s", d.place())
}

// checkTo refuses a command line that does not say where to.
func checkTo(cmd *cobra.Command, to string) error {
	if to != "" {
		return nil
	}
	const hint = "give --to a file, or a URL of the form postgres://user@host/name"
	if cmd.Flags().Changed("to") {
		return usagef(hint, "--to is empty")
	}
	return usagef(hint, "--to is missing")
}

// target reads what --to says, which is not empty.
func target(from *database, to string) (store.Config, error) {
	at := store.Config{KEK: from.at.KEK, MaxTokenLife: from.at.MaxTokenLife, MaxConnections: from.cfg.DatabaseConnections}
	switch {
	case strings.Contains(to, "://"):
		at.URL = to
		if store.Place(at) == "" {
			return at, usagef("the URL is postgres://user@host/name; the password may come from PGPASSWORD or ~/.pgpass", "--to is no URL of a PostgreSQL database")
		}
	default:
		path, err := filepath.Abs(to)
		if err != nil {
			return at, err
		}
		at.Path = path
		if own, err := filepath.Abs(from.at.Path); err == nil && from.at.URL == "" && own == path {
			return at, usagef("name another file, or a URL of the form postgres://user@host/name", "--to is the database itself")
		}
		if isFolder(path) {
			return at, usagef("name a file in it: --to "+profile.ShellWord(filepath.Join(to, store.FileName)), "--to is the folder %s", to)
		}
		return at, store.CheckFolder(path)
	}
	return at, nil
}

func isFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// copied is what copy prints.
type copied struct {
	From string `json:"from"`
	To   string `json:"to"`
	store.Copied
}

func showTables(tables []store.TableCount) string {
	var parts []string
	for _, t := range tables {
		if t.Rows > 0 && t.Table != "state" {
			parts = append(parts, fmt.Sprintf("%s %d", t.Table, t.Rows))
		}
	}
	return strings.Join(parts, ", ")
}

func (c *cli) storeCopyCommand() *cobra.Command {
	var flags *configFlags
	var to string
	cmd := &cobra.Command{
		Use: "copy --to URL|FILE", Short: "Copy the database whole into an empty one, of either kind", Args: arguments(0, 0),
		Long: "Copy the database whole into an empty one, of either kind: a PostgreSQL database, or a file that is not there yet. The\n" +
			"copy is one state, written in one transaction, and every table of it is read back before it counts. Private keys stay\n" +
			"sealed under the same key-encryption key. The service must be stopped. It goes on with the database that it had: the\n" +
			"copy is for looking at, or for trying an upgrade. To move the service, use store migrate; to keep a copy for bad days,\n" +
			"store backup, which asks for no stop. Cut short, it leaves an empty database, or FILE.draft, which nobody serves: run it\n" +
			"again with the same --to.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := c.copyDatabase(cmd, flags, to)
			if err != nil {
				return err
			}
			return c.print(done, func(w io.Writer) {
				fields(w, "copied", done.From, "to", done.To, "rows", showTables(done.Tables))
			})
		},
	}
	flags = databaseFlags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "where to: postgres://user@host/name, or a file")
	return cmd
}

func (c *cli) storeMigrateCommand() *cobra.Command {
	var flags *configFlags
	var to string
	var dry, cancel bool
	cmd := &cobra.Command{
		Use: "migrate [--to URL|FILE [--cancel]] [--dry-run]", Short: "Move the service to another database, or bring this one up to date", Args: arguments(0, 0),
		Long: "With --to: put the database out of service, and copy it whole into an empty one, of either kind. Identity,\n" +
			"certificates, tokens and codes stay what they are; the data folder with the journal and the key-encryption key stays\n" +
			"where it is, and serve --database URL goes on with it. Serving the old database is refused from then on, with the words\n" +
			"where it moved: what is revoked in the new one is not in the old one. To come back, migrate the other way. The journal\n" +
			"says so once the service runs again. Further replicas need the same key-encryption key (DATA/kek, or CERTBOUND_KEK).\n\n" +
			"Cut short anywhere, run it again with the same --to: it goes on where it was, and until then the old database is not\n" +
			"served. An error puts it into service again by itself, if it is certain that nothing has arrived. --cancel with the same\n" +
			"--to does so later, when the target can be reached and has nothing of it. A file that was begun is FILE.draft; the next\n" +
			"run removes it.\n\n" +
			"Without --to: bring the schema of the database up to date, as the next start of serve would. --dry-run says whether\n" +
			"there is something to do and changes nothing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			moves := cmd.Flags().Changed("to")
			switch {
			case moves && dry:
				return usagef("leave one of the two out", "--dry-run tries the schema, and --to moves the database")
			case cancel && !moves:
				return usagef("name with --to where it is being moved", "--cancel needs to look whether anything has arrived")
			case moves:
				return c.moveDatabase(cmd, flags, to, cancel)
			}
			return c.upgradeSchema(cmd, flags, dry)
		},
	}
	flags = databaseFlags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "where to: postgres://user@host/name, or a file")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done to the schema, and do nothing")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "give up a move that was cut short, when nothing has arrived")
	return cmd
}

// moveDatabase moves the database, or gives up a move.
func (c *cli) moveDatabase(cmd *cobra.Command, flags *configFlags, to string, cancel bool) error {
	if err := checkTo(cmd, to); err != nil {
		return err
	}
	from, err := c.openDatabase(cmd, flags, alone)
	if err != nil {
		return err
	}
	defer from.close()
	cfg := move.Config{From: from.at, Program: version}
	if cfg.To, err = target(from, to); err != nil {
		return err
	}
	cfg.Named = named(cfg.To)
	server.WarnOfDatabase(cmd.Context(), logger(from.cfg.Log, c.stderr), cfg.To)
	if cfg.Replica, err = server.ReplicaOf(from.cfg.Data); err != nil {
		return err
	}
	found, err := store.Exists(cmd.Context(), from.at)
	if err != nil {
		return err
	}
	if !found {
		return from.missing()
	}
	if cancel {
		report, err := move.Cancel(cmd.Context(), cfg)
		if err != nil {
			return moveFailure(err, cfg)
		}
		return c.print(report, func(w io.Writer) {
			fields(w, "in service again", report.From, "not moved to", report.To)
		})
	}
	report, err := move.Run(cmd.Context(), cfg)
	if err != nil {
		return moveFailure(err, cfg)
	}
	return c.print(report, func(w io.Writer) {
		fields(w, "moved", report.From, "to", report.To, "rows", showTables(report.Tables), "next", nextStart(cfg.To))
	})
}

func moveFailure(err error, cfg move.Config) error {
	to := named(cfg.To)
	if unfinished, is := errors.AsType[*move.UnfinishedError](err); is {
		again := move.UnfinishedError{From: unfinished.From, To: to, Err: unfinished.Err}
		return &failure{exit: exitFailed, code: "unfinished", description: err.Error(), hint: again.Hint()}
	}
	if refused, is := errors.AsType[*store.ConditionError](err); is && refused.Condition.To == store.Place(cfg.To) {
		again := *refused
		again.Condition.Named = to
		return &failure{exit: exitFailed, code: "not_servable", description: err.Error(), hint: again.Hint()}
	}
	switch {
	case errors.Is(err, restore.ErrServing):
		return failf("stop every replica, then run it again", "%v", err)
	case errors.Is(err, store.ErrMoving):
		return failf("wait until it has ended", "%v", err)
	case errors.Is(err, move.ErrElsewhere):
		return failf("name with --to the place that it is being moved to", "%v", err)
	case errors.Is(err, move.ErrForeignTarget):
		return failf("find out what became of what was copied there; if it is nowhere, certbound store migrate --cancel --to "+to+
			" puts the old database into service again", "%v", err)
	case errors.Is(err, move.ErrArrived):
		return failf("finish it: certbound store migrate --to "+to+"; to come back then, migrate the other way", "%v", err)
	case errors.Is(err, move.ErrNotMoving):
		return failf("there is nothing to give up", "%v", err)
	case errors.Is(err, fs.ErrExist), isWrongFile(err, cfg.To): // often what an earlier move left
		return failf("nothing is written over: name a file that is not there yet, or if it is the file of a database that was moved away, "+
			"put it elsewhere, with its -wal and -shm, and run this again", "%v", err)
	}
	return copyFailure(err)
}

// isWrongFile reports whether a file is in the place to fill that is no database of ours, or a damaged one.
func isWrongFile(err error, to store.Config) bool {
	at, is := errors.AsType[*store.PlaceError](err)
	return is && to.URL == "" && at.Place == store.Place(to) && (errors.Is(err, store.ErrForeign) || errors.Is(err, store.ErrDamaged) ||
		errors.Is(err, store.ErrDraft))
}

func copyFailure(err error) error {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, store.ErrNotEmpty) {
		return failf("name an empty database, or a file that is not there yet", "%v", err)
	}
	return err
}

// nextStart says how the service goes on with a database that arrived.
func nextStart(at store.Config) string {
	if at.URL != "" {
		return "certbound serve --database " + named(at) + ", with the same data folder"
	}
	to := at.Path
	if dir, file := filepath.Split(to); file != store.FileName { // serve opens a file of no other name
		return "certbound serve opens DATA/" + store.FileName + " alone: rename " + file + " to that, in " + cmp.Or(dir, "this folder") +
			" or another data folder; an old one that is there goes elsewhere first, with its -wal and -shm"
	}
	return "certbound serve, with the data folder that " + to + " lies in"
}

// named is how a verb names a database, as a shell takes it.
func named(at store.Config) string {
	if at.URL != "" {
		if shown := withoutPassword(at.URL); shown != "" {
			return shown
		}
	}
	return store.Place(at)
}

// withoutPassword is the URL of a database as a shell takes it, without what is secret in it; empty when it is none. What
// else it says is kept, as it was written: without its sslmode the next connection would be less safe than this one.
func withoutPassword(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	u.Fragment, u.RawFragment = "", ""
	u.RawQuery = strings.Join(slices.DeleteFunc(strings.Split(u.RawQuery, "&"), func(parameter string) bool {
		name, _, _ := strings.Cut(parameter, "=")
		name, err := url.QueryUnescape(name)
		return err != nil || strings.Contains(parameter, ";") || name == "password" || name == "sslpassword"
	}), "&")
	u.ForceQuery = false
	shown := u.String()
	if strings.ContainsAny(shown, "?&'()*$!,;~") {
		return "'" + strings.ReplaceAll(shown, "'", "%27") + "'"
	}
	return shown
}

// copyDatabase copies the database.
func (c *cli) copyDatabase(cmd *cobra.Command, flags *configFlags, to string) (*copied, error) {
	ctx := cmd.Context()
	if err := checkTo(cmd, to); err != nil {
		return nil, err
	}
	from, err := c.openDatabase(cmd, flags, alone)
	if err != nil {
		return nil, err
	}
	defer from.close()
	at, err := target(from, to)
	if err != nil {
		return nil, err
	}
	server.WarnOfDatabase(ctx, logger(from.cfg.Log, c.stderr), at)
	source, err := from.read(ctx)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	if from.cfg.PostgreSQL() {
		if err := restore.Unserved(ctx, source); err != nil {
			return nil, failf("stop every replica, then run it again", "%v", err)
		}
	}
	done := &copied{From: from.place(), To: store.Place(at)}
	if done.Copied, err = source.CopyInto(ctx, at, store.CopyConfig{KEK: from.at.KEK, Program: version}); err != nil {
		return nil, copyFailure(err)
	}
	return done, nil
}

// upgradeSchema brings the schema up to date.
func (c *cli) upgradeSchema(cmd *cobra.Command, flags *configFlags, dry bool) error {
	ctx := cmd.Context()
	what := alone
	if dry {
		what = reads
	}
	at, err := c.openDatabase(cmd, flags, what)
	if err != nil {
		return err
	}
	defer at.close()
	result := struct {
		Database string `json:"database"`
		Schema   int    `json:"schema"` // that the database has
		Newest   int    `json:"newest"` // that this program makes of it
		Changed  bool   `json:"changed"`
	}{Database: at.place()}
	db, err := at.read(ctx)
	older, isOlder := errors.AsType[*store.SchemaError](err)
	switch {
	case err == nil:
		if result.Schema, err = db.Schema(ctx); err != nil {
			return errors.Join(err, db.Close())
		}
		result.Newest = result.Schema
		if err := db.Close(); err != nil {
			return err
		}
	case isOlder && errors.Is(err, store.ErrOlderSchema):
		result.Schema, result.Newest = older.Found, older.Newest
		if dry {
			break
		}
		if db, err = store.Open(ctx, at.at); err != nil {
			return err
		}
		result.Schema, result.Changed = older.Newest, true
		if err := db.Close(); err != nil {
			return err
		}
	default:
		return err
	}
	return c.print(result, func(w io.Writer) {
		switch {
		case result.Changed:
			fmt.Fprintf(w, "%s has the schema %d now\n", result.Database, result.Schema)
		case result.Schema < result.Newest:
			fmt.Fprintf(w, "%s has the schema %d: it would be brought to %d\n", result.Database, result.Schema, result.Newest)
		default:
			fmt.Fprintf(w, "%s has the schema %d already: nothing to do\n", result.Database, result.Schema)
		}
	})
}

func (c *cli) storeBackupCommand() *cobra.Command {
	var flags *configFlags
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write a backup of the database into one file, while the service runs", Args: arguments(1, 1),
		Long: "Write a backup of the database into one file, 0600, of either kind of database: it is one state, read back before it\n" +
			"counts, and on the disk when this ends. The service may run and is not disturbed. An existing file is not replaced,\n" +
			"and a missing folder is not made. Cut short, it leaves FILE.draft, which is no backup: the next one of that name removes it.\n\n" +
			"What is not in it: the key-encryption key (DATA/kek, or where the configuration has it), without which nobody reads the\n" +
			"private keys in the backup, neither a thief nor you: keep it elsewhere, once. And the journal, DATA/audit of every\n" +
			"replica: store restore needs it, to do again what was revoked after the backup. Copy that folder as often as you can bear\n" +
			"to lose revocations; it only grows.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if err := checkBackup(args[0]); err != nil {
				return err
			}
			at, err := c.openDatabase(cmd, flags, reads)
			if err != nil {
				return err
			}
			db, err := at.read(ctx)
			if err != nil {
				return err
			}
			defer db.Close()
			result := struct {
				File   string          `json:"file"`
				Backup store.BackupTag `json:"backup"`
				store.Copied
			}{File: args[0]}
			result.Backup, result.Copied, err = db.Backup(ctx, args[0], store.CopyConfig{KEK: at.at.KEK, Program: version})
			if errors.Is(err, fs.ErrExist) {
				return failf("name a file that is not there yet, such as "+newBackup(filepath.Dir(args[0])), "%v", err)
			}
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) {
				fields(w, "backup", result.File, "of", at.place(), "made", stamp(result.Backup.MadeAt), "rows", showTables(result.Tables),
					"not in it", "the key-encryption key and the journal: keep them too, and elsewhere")
			})
		},
	}
	flags = databaseFlags(cmd)
	return cmd
}

// checkBackup refuses a name that no backup can have.
func checkBackup(file string) error {
	switch {
	case file == "":
		return usagef("name a file that is not there yet, such as "+newBackup("."), "the name of the backup is empty")
	case strings.Contains(file, "://"):
		return usagef("name a file; --database names the database that is backed up, and store copy --to URL copies it into another one",
			"a backup is a file, of a PostgreSQL database too")
	case isFolder(file):
		return usagef("name a file in it, such as "+newBackup(file), "%s is a folder", file)
	}
	return nil
}

// newBackup is a name for a backup in a folder, as a shell takes it.
func newBackup(dir string) string {
	return profile.ShellWord(filepath.Join(dir, "backup-"+time.Now().UTC().Format("20060102-150405")))
}

func (c *cli) storeRestoreCommand() *cobra.Command {
	var flags *configFlags
	var journals []string
	var heads string
	var accept, inPlace bool
	cmd := &cobra.Command{
		Use: "restore FILE|--in-place [--journal DIR]… [--heads FILE] [--accept-loss]", Short: "Make a database of a backup and of what the journals say happened since",
		Args: arguments(0, 1),
		Long: "Make a database of a backup: DATA/certbound.db, which must not be there, or an empty PostgreSQL database. Then do again what\n" +
			"the journals say was done after the backup: revocations, blocked keys, disabled, removed, added and enabled clients, used\n" +
			"codes, certificates that were issued or renewed, resources, and foreign CAs that were removed. Open codes and requests\n" +
			"that waited for an operator are void. The service refuses to serve the database until that is done. Cut short, run it\n" +
			"again: it goes on where it was.\n\n" +
			"--journal names the data folder of a replica, or a copy of its folder audit; name each replica's. Without it DATA/audit is\n" +
			"taken. They are verified first, and held to the heads that the backup and the operator's profile know. The journal of a\n" +
			"replica that began after the backup is missed too, since the others' speak of it before it decides anything; of one that\n" +
			"began while no other was live, only those that came later and the heads of the operator's profile do. What a record does\n" +
			"not carry is not made up: certificates of clients and of foreign CAs, and personal members sealed on a later day than\n" +
			"the backup's. Such clients come back disabled, such CAs not at all, and the output names them. An assertion that was used\n" +
			"after the backup is good once more until it expires, 11 minutes later at the latest.\n\n" +
			"--accept-loss goes on without journals, with one that ends too early, and with one that is not what was written, of which\n" +
			"only what takes away is done again. Then what was revoked meanwhile may be in force again.\n\n" +
			"--in-place, with PostgreSQL, is for a database that was recovered to an earlier time, or lost acknowledged changes: no\n" +
			"backup is read, and the changes after its present version are made again. Do it before anything is served on it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if inPlace == (len(args) == 1) {
				return usagef("give the backup's file, or --in-place", "restore takes a backup's file or --in-place, and one of them")
			}
			at, err := c.openDatabase(cmd, flags, fills)
			if err != nil {
				return err
			}
			defer at.close()
			if inPlace {
				if err := at.present(cmd.Context()); err != nil {
					return err
				}
			}
			cfg := restore.Config{Target: at.at, Journals: journals, AcceptLoss: accept, Program: version, Logger: logger(at.cfg.Log, c.stderr)}
			if len(args) == 1 {
				cfg.Backup = args[0]
			}
			if own := filepath.Join(at.cfg.Data, "audit"); len(journals) == 0 {
				if entries, err := os.ReadDir(own); err == nil && len(entries) > 0 {
					cfg.Journals = []string{at.cfg.Data}
				}
			}
			if cfg.Heads, err = c.knownHeads(cmd.Flags().Changed("heads"), heads, at.cfg.Data); err != nil {
				return err
			}
			report, err := restore.Run(cmd.Context(), cfg)
			if err != nil {
				return restoreFailure(err, cfg)
			}
			return c.print(report, func(w io.Writer) {
				showRestored(w, at.place(), report)
				if _, missing := os.Stat(filepath.Join(at.cfg.Data, "audit")); missing != nil && at.at.URL == "" {
					fmt.Fprintf(w, "next: copy the folder audit of the service that was into %s; certbound serve does not start without it, "+
						"unless its loss is accepted with --accept-journal-loss\n", at.cfg.Data)
				}
			})
		},
	}
	flags = databaseFlags(cmd)
	cmd.Flags().StringArrayVar(&journals, "journal", nil, "data folder of a replica, or a copy of its folder audit (repeatable; default DATA)")
	cmd.Flags().StringVar(&heads, "heads", "", "file of known heads; empty: none (else heads.json of the operator's profile)")
	cmd.Flags().BoolVar(&accept, "accept-loss", false, "go on where something is known to be lost")
	cmd.Flags().BoolVar(&inPlace, "in-place", false, "bring a PostgreSQL database up to date that went back by itself")
	c.profileFlag(cmd, operatorProfile)
	return cmd
}

func restoreFailure(err error, cfg restore.Config) error {
	const (
		nameBackup  = "name a file that certbound store backup has written"
		nameJournal = "name the data folder of a replica, or a copy of its folder audit, with --journal"
	)
	loss, lost := errors.AsType[*restore.LossError](err)
	switch {
	case lost:
		return &failure{exit: exitFailed, code: "loss", description: "something would be lost: " + loss.Error(),
			hint: "name the data folder of every replica, or a copy of its folder audit, with --journal; --accept-loss goes on without what is lost"}
	case errors.Is(err, restore.ErrNoBackup):
		return failf(nameBackup, "%v", err)
	case errors.Is(err, restore.ErrOtherInstallation):
		return failf("take the backup and the journals of one installation", "%v", err)
	case errors.Is(err, store.ErrNotEmpty):
		return failf("move the database away that is there, or name an empty one", "%v", err)
	case errors.Is(err, audit.ErrNoJournal):
		return failf(nameJournal, "%v", err)
	}
	if at, is := errors.AsType[*store.PlaceError](err); is && !at.Server {
		wrong := errors.Is(err, store.ErrForeign) || errors.Is(err, store.ErrDamaged)
		switch {
		case at.Place != cfg.Backup && cfg.Backup != "" && wrong:
			return failf("move away what is there, with its -wal and -shm; it was not touched", "%v", err)
		case at.Place != cfg.Backup:
		case wrong:
			return failf(nameBackup+", whole; this one was not touched", "%v", err)
		case errors.Is(err, store.ErrWrongKEK):
			return failf("put the key-encryption key that was in force when the backup was made into its place: where keys rewrap has put "+
				"another there, it kept that as DATA/kek.until-TIME", "%v", err)
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
			return failf(nameBackup, "there is no backup %s", cfg.Backup)
		}
	}
	if at, is := errors.AsType[*fs.PathError](err); is && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
		for _, journal := range cfg.Journals {
			if at.Path == audit.Dir(journal) {
				return failf(nameJournal, "there is no journal in %s", journal)
			}
		}
	}
	return err
}

func showRestored(w io.Writer, place string, r *restore.Report) {
	from := "in place"
	if b := r.Backup; b != nil {
		from = fmt.Sprintf("made %s by certbound %s", stamp(b.MadeAt), b.Program)
	}
	var done []string
	for name, n := range r.Done {
		done = append(done, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(done)
	fields(w, "restored", place, "backup", from, "done again", orNone(strings.Join(done, ", ")))
	for _, j := range r.Journals {
		fmt.Fprintf(w, "journal: %s of replica %s, %d records, %d of changes after the backup\n", j.Dir, j.Replica, j.Last, j.Changes)
	}
	for _, text := range r.Lost {
		fmt.Fprintf(w, "lost: %s\n", text)
	}
	for _, text := range r.Undone {
		fmt.Fprintf(w, "not done again: %s\n", text)
	}
	fmt.Fprintln(w, "open codes are void; invite those again who had not redeemed theirs")
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
