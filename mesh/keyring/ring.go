package keyring

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"guywire/mesh"
	"guywire/store/disk"
)

const (
	directory    = "keys"
	identityFile = "identity"
	epochPrefix  = "wireguard-" // followed by the epoch
)

// A Ring is the open key directory.
type Ring struct {
	dir      *disk.Dir
	identity ed25519.PrivateKey

	mu     sync.Mutex // guards epochs and the files of the WireGuard keys
	epochs map[mesh.Epoch]*ecdh.PrivateKey
}

// Open reads the keys below the state directory. ErrNoIdentity: there are
// none yet. Other errors wrap ErrCorrupt or disk.ErrUnsafe. The Ring holds a
// directory of its own until Close, which comes before that of state.
func Open(state *disk.Dir) (*Ring, error) {
	d, err := state.Sub(directory)
	if err != nil {
		return nil, err
	}
	r := &Ring{dir: d, epochs: map[mesh.Epoch]*ecdh.PrivateKey{}}
	if err := r.load(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return r, nil
}

// Create makes an identity key and opens the ring. It never replaces a key:
// ErrExists. WireGuard keys without an identity, which an interrupted Destroy
// leaves, are removed.
func Create(state *disk.Dir) (*Ring, error) {
	d, err := state.Sub(directory)
	if err != nil {
		return nil, err
	}
	if err := create(d); err != nil {
		return nil, errors.Join(fmt.Errorf("create identity key: %w", err), d.Close())
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	return Open(state)
}

func create(d *disk.Dir) error {
	names, err := d.List()
	if err != nil {
		return err
	}
	if slices.Contains(names, identityFile) {
		return ErrExists
	}
	for _, name := range names {
		if strings.HasPrefix(name, epochPrefix) {
			if err := d.Remove(name); err != nil {
				return err
			}
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return d.Write(identityFile, encode(kindIdentity, private.Seed(), public))
}

func (r *Ring) load() error {
	seed, public, err := readKey(r.dir, kindIdentity, identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", r.dir.Path(identityFile), ErrNoIdentity)
	} else if err != nil {
		return err
	}
	r.identity = ed25519.NewKeyFromSeed(seed[:])
	if r.Identity() != public {
		return fmt.Errorf("%s: %w", r.dir.Path(identityFile), ErrCorrupt)
	}
	names, err := r.dir.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		number, ok := strings.CutPrefix(name, epochPrefix)
		if !ok {
			continue
		}
		epoch, err := strconv.ParseUint(number, 10, 32)
		if err != nil || epoch == 0 || fileOf(mesh.Epoch(epoch)) != name {
			return fmt.Errorf("%s is not the name of a key; move it away", r.dir.Path(name))
		}
		private, public, err := readKey(r.dir, kindWireGuard, name)
		if err != nil {
			return err
		}
		k, err := ecdh.X25519().NewPrivateKey(private[:])
		if err != nil || [32]byte(k.PublicKey().Bytes()) != public {
			return fmt.Errorf("%s: %w", r.dir.Path(name), ErrCorrupt)
		}
		r.epochs[mesh.Epoch(epoch)] = k
	}
	return nil
}

// Close releases the directory; the ring is not used after it.
func (r *Ring) Close() error { return r.dir.Close() }

// Identity is the public identity key.
func (r *Ring) Identity() mesh.IdentityKey {
	return mesh.IdentityKey(r.identity.Public().(ed25519.PublicKey))
}

// Sign is the Ed25519 signature of the message by the identity key.
func (r *Ring) Sign(message []byte) []byte { return ed25519.Sign(r.identity, message) }

// Signer lets crypto/tls and crypto/x509 use the identity key without reading it.
func (r *Ring) Signer() crypto.Signer { return signer{r} }

type signer struct{ ring *Ring }

func (s signer) Public() crypto.PublicKey { return s.ring.identity.Public() }

func (s signer) Sign(random io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.ring.identity.Sign(random, message, opts)
}

// Generate makes the WireGuard key of the epoch, from 1 upwards, and returns
// its public half once the private one is safely on disk. Asked again, also
// after a restart, it gives the same key.
func (r *Ring) Generate(epoch mesh.Epoch) (mesh.WireGuardKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k, ok := r.epochs[epoch]; ok {
		return publicOf(k), nil
	}
	if epoch == 0 {
		return mesh.WireGuardKey{}, errors.New("make WireGuard key: epochs begin with 1")
	}
	var private [32]byte
	if _, err := rand.Read(private[:]); err != nil {
		return mesh.WireGuardKey{}, fmt.Errorf("make WireGuard key of epoch %d: %w", epoch, err)
	}
	// Clamped as wg genkey does it, so that every tool shows the same key.
	private[0] &= 248
	private[31] = private[31]&127 | 64
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return mesh.WireGuardKey{}, fmt.Errorf("make WireGuard key of epoch %d: %w", epoch, err)
	}
	if err := r.dir.Write(fileOf(epoch), encode(kindWireGuard, private[:], k.PublicKey().Bytes())); err != nil {
		return mesh.WireGuardKey{}, fmt.Errorf("keep WireGuard key of epoch %d: %w", epoch, err)
	}
	r.epochs[epoch] = k
	return publicOf(k), nil
}

// Private is the WireGuard private key of the epoch, for the device that
// uses it. ErrNoKey: never made here, or retired.
func (r *Ring) Private(epoch mesh.Epoch) ([32]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.epochs[epoch]
	if !ok {
		return [32]byte{}, fmt.Errorf("epoch %d: %w", epoch, ErrNoKey)
	}
	return [32]byte(k.Bytes()), nil
}

// Public is the public half of the epoch's key. ErrNoKey: never made here, or retired.
func (r *Ring) Public(epoch mesh.Epoch) (mesh.WireGuardKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.epochs[epoch]
	if !ok {
		return mesh.WireGuardKey{}, fmt.Errorf("epoch %d: %w", epoch, ErrNoKey)
	}
	return publicOf(k), nil
}

// Epochs are those that have a key here, oldest first.
func (r *Ring) Epochs() []mesh.Epoch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.epochs))
}

// Retire removes the key of an epoch for good; an absent one is no error.
func (r *Ring) Retire(epoch mesh.Epoch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.dir.Remove(fileOf(epoch)); err != nil {
		return fmt.Errorf("retire WireGuard key of epoch %d: %w", epoch, err)
	}
	delete(r.epochs, epoch)
	return nil
}

// Destroy removes every key, after the node left its mesh: the identity is
// refused there for ever, so the next join needs another. The identity goes
// first; whatever a crash leaves behind it is no node's.
func (r *Ring) Destroy() error {
	if err := r.dir.Remove(identityFile); err != nil {
		return err
	}
	for _, epoch := range r.Epochs() {
		if err := r.Retire(epoch); err != nil {
			return err
		}
	}
	return nil
}

// Format implements fmt.Formatter for every verb without any private key.
func (r *Ring) Format(s fmt.State, _ rune) { fmt.Fprint(s, "keyring of "+r.Identity().String()) }

// LogValue implements slog.LogValuer with the public identity.
func (r *Ring) LogValue() slog.Value { return slog.StringValue(r.Identity().String()) }

// Format implements fmt.Formatter as the ring does.
func (s signer) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.ring) }

func publicOf(k *ecdh.PrivateKey) mesh.WireGuardKey {
	return mesh.WireGuardKey(k.PublicKey().Bytes())
}

func fileOf(epoch mesh.Epoch) string { return epochPrefix + strconv.FormatUint(uint64(epoch), 10) }
