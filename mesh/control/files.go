package control

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"guywire/mesh/transport"
	"guywire/store/audit"
	"guywire/store/cache"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// files are the control plane's own. The certificate is written last when a
// node becomes a member and removed first when that ends: its presence alone
// says that this machine is in a mesh, and that all else is there.
type files struct {
	state *disk.Dir
	dir   *disk.Dir // "control" in it
}

const (
	folder          = "control"
	certificateFile = "certificate"
	authorityFile   = "authority" // voters only: holds the CA's private key
	raftFolder      = "raft"
	maxFile         = 64 << 10
)

// A certificate is a node's certificate with that of the CA which signed it.
type certificate struct {
	Node      []byte `json:"node"`      // DER
	Authority []byte `json:"authority"` // DER
}

// An authorityKey is the mesh's CA as one voter hands it to the next. It is
// never logged.
type authorityKey struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // Ed25519 private key
}

func (a authorityKey) authority() (*transport.Authority, error) {
	return transport.ParseAuthority(a.Certificate, ed25519.PrivateKey(a.Key))
}

func keyOf(a *transport.Authority) authorityKey {
	return authorityKey{Certificate: a.Certificate(), Key: a.Key()}
}

func openFiles(state *disk.Dir) (files, error) {
	dir, err := state.Sub(folder)
	if err != nil {
		return files{}, err
	}
	return files{state: state, dir: dir}, nil
}

func (f files) close() error { return f.dir.Close() }

func (f files) raft() string { return f.dir.Path(raftFolder) }

// enrolled reports whether this machine is in a mesh. An unreadable
// certificate counts, so that nothing is overwritten.
func (f files) enrolled() bool {
	var c certificate
	return !errors.Is(f.read(certificateFile, &c), fs.ErrNotExist)
}

// Forget removes from a state directory what makes this machine a member. No
// Plane may be open on it. Its owner destroys the keys.
func Forget(state *disk.Dir) error {
	f, err := openFiles(state)
	if err != nil {
		return err
	}
	return errors.Join(f.clear(), f.close())
}

// clear removes what makes this machine a member, or what an interrupted
// attempt to become one left behind.
func (f files) clear() error {
	return errors.Join(
		f.dir.Remove(certificateFile),
		f.dir.Remove(authorityFile),
		raftstore.Destroy(f.raft()),
		f.dir.RemoveAll(audit.Folder),
		cache.Forget(f.state),
	)
}

func (f files) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return f.dir.Write(name, b)
}

// read reads what write wrote; a missing file is fs.ErrNotExist.
func (f files) read(name string, v any) error {
	b, err := f.dir.Read(name, maxFile)
	if err != nil {
		return err
	}
	if err := unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is damaged; restore it from a backup, or leave and join again: %w", f.dir.Path(name), err)
	}
	return nil
}
