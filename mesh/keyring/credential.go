package keyring

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"guywire/mesh"
)

// Limits of a Credential.
const (
	MaxPins    = 4
	MaxServers = 8
)

const (
	credentialVersion = 1
	maxCredential     = 16 << 10
)

// A Credential is what an operator without a node holds: a key of their own,
// and where and how to know the mesh. It prints without the private key.
type Credential struct {
	Name    string // of the operator in the mesh
	Mesh    mesh.MeshID
	Pins    [][32]byte       // SHA-256 of the SubjectPublicKeyInfo of each accepted CA, 1 to MaxPins
	Servers []netip.AddrPort // control addresses to ask, 1 to MaxServers, best first

	identity ed25519.PrivateKey
}

// credentialFile is the form on disk: JSON, indented, in this order.
type credentialFile struct {
	Version int              `json:"guywire_operator"`
	Name    string           `json:"name"`
	Mesh    mesh.MeshID      `json:"mesh"`
	Pins    []string         `json:"pins"` // hex
	Servers []netip.AddrPort `json:"servers"`
	Public  mesh.IdentityKey `json:"public"`
	Private string           `json:"private"` // seed, base64
}

// NewCredential makes the key of an operator. Nothing is written yet.
func NewCredential(name string, id mesh.MeshID, pins [][32]byte, servers []netip.AddrPort) (*Credential, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make operator key: %w", err)
	}
	c := &Credential{Name: name, Mesh: id, Pins: slices.Clone(pins), Servers: slices.Clone(servers), identity: private}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("make operator credential: %w", err)
	}
	return c, nil
}

// ReadCredential reads the file that Write made. A file that others may read or
// write is refused: ErrExposed. One that Write did not make: ErrCredential.
func ReadCredential(path string) (*Credential, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read operator credential: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read operator credential: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: %w", path, ErrCredential)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %#o: %w", path, info.Mode().Perm(), ErrExposed)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err != nil {
		return nil, fmt.Errorf("read operator credential: %w", err)
	}
	c, err := decodeCredential(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Write makes the file, readable by its owner only, and never replaces one: the
// error is then an fs.ErrExist. It returns when the file is safely on disk.
func (c *Credential) Write(path string) error {
	b, err := c.encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("there is a file already; choose another name: %w", err)
	}
	if err != nil {
		return fmt.Errorf("write operator credential: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return errors.Join(fmt.Errorf("write operator credential: %w", err), os.Remove(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Identity is the public key, by which the mesh knows the operator.
func (c *Credential) Identity() mesh.IdentityKey {
	return mesh.IdentityKey(c.identity.Public().(ed25519.PublicKey))
}

// Sign is the Ed25519 signature of the message by the operator's key.
func (c *Credential) Sign(message []byte) []byte { return ed25519.Sign(c.identity, message) }

// Signer lets crypto/tls and crypto/x509 use the key without reading it.
func (c *Credential) Signer() crypto.Signer { return credentialSigner{c} }

type credentialSigner struct{ c *Credential }

func (s credentialSigner) Public() crypto.PublicKey { return s.c.identity.Public() }

func (s credentialSigner) Sign(random io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.c.identity.Sign(random, message, opts)
}

// Format implements fmt.Formatter as the credential does.
func (s credentialSigner) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.c) }

// Format implements fmt.Formatter for every verb without the private key.
func (c *Credential) Format(s fmt.State, _ rune) { fmt.Fprint(s, c.text()) }

// LogValue implements slog.LogValuer without the private key.
func (c *Credential) LogValue() slog.Value { return slog.StringValue(c.text()) }

func (c *Credential) text() string {
	return "operator " + c.Name + " with the key " + c.Identity().String()
}

func (c *Credential) check() error {
	if err := mesh.CheckName(c.Name); err != nil {
		return err
	}
	switch {
	case c.Mesh.IsZero():
		return errors.New("it names no mesh")
	case len(c.Pins) < 1 || len(c.Pins) > MaxPins:
		return fmt.Errorf("it must pin 1 to %d CA keys, not %d", MaxPins, len(c.Pins))
	case len(c.Servers) < 1 || len(c.Servers) > MaxServers:
		return fmt.Errorf("it must name 1 to %d servers, not %d", MaxServers, len(c.Servers))
	}
	for _, s := range c.Servers {
		if !s.IsValid() || s.Addr().IsUnspecified() || s.Port() == 0 {
			return fmt.Errorf("%s cannot be the address of a server", s)
		}
	}
	return nil
}

func (c *Credential) encode() ([]byte, error) {
	f := credentialFile{
		Version: credentialVersion, Name: c.Name, Mesh: c.Mesh, Servers: c.Servers,
		Public: c.Identity(), Private: base64.StdEncoding.EncodeToString(c.identity.Seed()),
	}
	for _, pin := range c.Pins {
		f.Pins = append(f.Pins, hex.EncodeToString(pin[:]))
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode operator credential: %w", err)
	}
	return append(b, '\n'), nil
}

// decodeCredential reads what encode wrote, and nothing else. Its errors show
// nothing of the file: it could be a part of the key.
func decodeCredential(b []byte) (*Credential, error) {
	var f credentialFile
	if len(b) > maxCredential || json.Unmarshal(b, &f) != nil || f.Version != credentialVersion {
		return nil, ErrCredential
	}
	seed, err := base64.StdEncoding.DecodeString(f.Private)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, ErrCredential
	}
	c := &Credential{Name: f.Name, Mesh: f.Mesh, Servers: f.Servers, identity: ed25519.NewKeyFromSeed(seed)}
	for _, text := range f.Pins {
		pin, err := hex.DecodeString(text)
		if err != nil || len(pin) != 32 {
			return nil, ErrCredential
		}
		c.Pins = append(c.Pins, [32]byte(pin))
	}
	if c.check() != nil {
		return nil, ErrCredential
	}
	again, err := c.encode() // with the public half of the private one
	if err != nil || !bytes.Equal(again, b) {
		return nil, ErrCredential
	}
	return c, nil
}
