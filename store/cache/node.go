package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"guywire/mesh"
	"guywire/store/disk"
)

const (
	nodeFile    = "node.json"
	nodeVersion = 1
	maxNodeFile = 4096
)

// An Owner is which node of which mesh a state directory belongs to.
type Owner struct {
	Mesh mesh.MeshID `json:"mesh"`
	Node mesh.NodeID `json:"node"`
}

type nodeJSON struct {
	Version int `json:"version"`
	Owner
}

// ReadOwner tells whose the state directory is. ErrNotEnrolled: nobody's yet.
func ReadOwner(state *disk.Dir) (Owner, error) {
	b, err := state.Read(nodeFile, maxNodeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Owner{}, ErrNotEnrolled
	} else if err != nil {
		return Owner{}, err
	}
	o, err := decodeOwner(b)
	if err != nil {
		return Owner{}, fmt.Errorf("%s: %w; restore it from a backup, or empty the state directory and join again", state.Path(nodeFile), err)
	}
	return o, nil
}

func decodeOwner(b []byte) (Owner, error) {
	var n nodeJSON
	if err := json.Unmarshal(b, &n); err != nil {
		return Owner{}, fmt.Errorf("not the file that meshd wrote: %w", err)
	}
	switch {
	case n.Version > nodeVersion:
		return Owner{}, fmt.Errorf("version %d is of a newer Guywire; upgrade this node", n.Version)
	case n.Version < 1 || n.Mesh.IsZero() || n.Node.IsZero():
		return Owner{}, errors.New("not the file that meshd wrote: a field is missing")
	}
	return n.Owner, nil
}

// Bind gives the state directory to an owner, durably, at init or join. Asked
// again it does nothing. ErrOtherMesh: it has another owner.
func Bind(state *disk.Dir, o Owner) error {
	switch old, err := ReadOwner(state); {
	case errors.Is(err, ErrNotEnrolled):
	case err != nil:
		return err
	default:
		return old.check(state, o)
	}
	b, err := json.MarshalIndent(nodeJSON{nodeVersion, o}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", nodeFile, err)
	}
	return state.Write(nodeFile, append(b, '\n'))
}

func (o Owner) check(state *disk.Dir, want Owner) error {
	if o != want {
		return fmt.Errorf("%w: %s is of node %s in mesh %s, not of node %s in mesh %s; leave that mesh first (meshctl leave), or use another state directory",
			ErrOtherMesh, state.Path(nodeFile), o.Node, o.Mesh, want.Node, want.Mesh)
	}
	return nil
}

// Forget makes the state directory nobody's and removes the cache with all
// that was set aside, after the node left its mesh and closed its Cache. The
// owner goes last, so that after a crash in between it can be asked again.
func Forget(state *disk.Dir) error {
	if err := state.RemoveAll(directory); err != nil {
		return err
	}
	return state.Remove(nodeFile)
}
